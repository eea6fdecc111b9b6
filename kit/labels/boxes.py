"""True and false boxes in, three-state targets of windows and recordings, and each class's band, out."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.core.files import read_table
from kit.labels.table import ClipLabels, column_of_class, rows_by_name

BOX_EDGES = ("t_min", "t_max", "f_min", "f_max")


@dataclass(frozen=True)
class Boxes:
    """Stretches of time and frequency, each known to hold its class or not to.

    Shape:  each (n,): recordings of text, species as places in classes, is_true bool, edges float64
    """

    classes: tuple[str, ...]
    recordings: np.ndarray
    species: np.ndarray
    is_true: np.ndarray
    begin_s: np.ndarray
    end_s: np.ndarray
    low_hz: np.ndarray
    high_hz: np.ndarray

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The boxes of each recording."""
        return rows_by_name(self.recordings.tolist())

    @functools.cached_property
    def members(self) -> np.ndarray:
        """Whether a box is of a class. Shape: (n, K) bool"""
        return np.asarray(self.species[:, None] == np.arange(len(self.classes)))


def read_boxes(true_path: str | Path, false_path: str | Path, classes: Sequence[str] | None = None) -> Boxes:
    """Two CSVs, `recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max`, of true and of false positives.

    Species i is class `s{i}`, up to the greatest id, unless `classes` names them. Either file may be empty, not both.
    Errors: KitError that names the line
    """
    n_classes = 10**5 if classes is None else len(classes)
    true, false = (read_box_columns(path, n_classes) for path in (true_path, false_path))
    recordings, species, *edges = (one + other for one, other in zip(true, false, strict=True))
    if not species:
        raise KitError(f"{true_path} and {false_path} hold no boxes.")
    names = tuple(column_of_class(classes or [f"s{i}" for i in range(max(species) + 1)]))
    is_true, places = np.arange(len(species)) < len(true[0]), np.array(species, np.int64)
    return Boxes(names, np.array(recordings, str), places, is_true, *np.array(edges, np.float64))


def read_box_columns(path: str | Path, n_classes: int) -> list[list[Any]]:
    """One file's recordings as text, species as integers and edges as numbers, all checked."""
    table = read_table(path, ("recording_id", "species_id", *BOX_EDGES))
    table.check_names("recording_id", once=False)
    wanted = f"its place in the classes, from 0 to {n_classes - 1}"
    species = table.numbers("species_id", wanted, lambda place: 0 <= place < n_classes, int)
    edges = [table.numbers(name) for name in BOX_EDGES]
    for what, (least, most) in (("t", edges[:2]), ("f", edges[2:])):
        for row, (low, high) in enumerate(zip(least, most, strict=True)):
            if not high > low:
                raise KitError(f"{table.at(row)}: {what}_max {high:g} must be above {what}_min {low:g}.")
    return [table.columns["recording_id"], species, *edges]


def window_targets(
    boxes: Boxes, recording: str, begin_s: Any, end_s: Any, min_share: float = 0.5
) -> np.ndarray:
    """What the boxes say of windows of one recording: true, false or unknown for each class.

    A window hears a box where they share at least `min_share` of the shorter of the two. It is true for
    a class whose true box it hears; false where it hears a false box and touches no true one; else unknown.

    Shape:  begin_s, end_s: numbers -> (K,) float32; both (W,) -> (W, K)
    Source: second place, RFCX Species Audio Detection
    """
    if not 0 < min_share <= 1:
        raise KitError(f"min_share must be in (0, 1], got {min_share}.")
    begin, end = (np.asarray(time, np.float64)[..., None] for time in (begin_s, end_s))
    if not (end > begin).all():
        raise KitError(f"a window must end after it begins, got {begin_s} to {end_s} s.")
    here = boxes.rows.get(recording, np.zeros(0, np.int64))
    first, last, true = boxes.begin_s[here], boxes.end_s[here], boxes.is_true[here]
    shared = np.minimum(end, last) - np.maximum(begin, first)
    heard = shared >= min_share * np.minimum(end - begin, last - first)
    of_class = boxes.members[here]
    targets = np.where(heard @ of_class, np.float32(0), np.float32(np.nan))
    targets[((shared > 0) & true) @ of_class] = np.nan
    targets[(heard & true) @ of_class] = 1
    return targets


def recording_labels(boxes: Boxes) -> ClipLabels:
    """Every recording with a box, sorted: true by any true box of a class, false by false ones only.

    Source: 32nd place, RFCX Species Audio Detection (one pass over the clip, scored on known labels)
    """
    names, row = np.unique(boxes.recordings, return_inverse=True)
    n = len(names)
    targets = np.full((n, len(boxes.classes)), np.nan, np.float32)
    for state in (False, True):
        chosen = boxes.is_true == state
        targets[row[chosen], boxes.species[chosen]] = state
    return ClipLabels(tuple(names.tolist()), boxes.classes, targets, np.ones(n, np.float32), np.full(n, ""))


def class_bands_hz(boxes: Boxes, margin_hz: float = 100.0) -> np.ndarray:
    """The band that holds every true box of a class, widened by a margin, from 0 Hz at the lowest.

    A class without a true box has the band of its false ones.

    Shape:  -> (K, 2) float64, low and high
    Source: 32nd place, RFCX Species Audio Detection
    """
    true = boxes.members & boxes.is_true[:, None]
    told = np.where(true.any(axis=0), true, boxes.members)
    silent = [boxes.classes[k] for k in np.flatnonzero(~told.any(axis=0))]
    if silent:
        raise KitError(f"{len(silent)} of {len(boxes.classes)} classes have no box: {', '.join(silent[:9])}.")
    low = np.where(told, boxes.low_hz[:, None], np.inf).min(axis=0) - margin_hz
    high = np.where(told, boxes.high_hz[:, None], 0.0).max(axis=0) + margin_hz
    return np.stack([low.clip(min=0.0), high], axis=1)
