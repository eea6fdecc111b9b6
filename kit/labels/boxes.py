'''Boxes in time and frequency that hold a class or not, and the labels and bands that follow from them.'''

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.core.files import audio_stem, join_cells, read_table
from kit.labels.table import ALL_OTHERS, check_line_ends, column_of_class, read_clip_table, rows_by_name

BOX_EDGES = ('t_min', 't_max', 'f_min', 'f_max')
# A file whose edges are all below this gives them in kHz: calls are not that low in Hz, nor as high in kHz.
LOWEST_HZ = 100.0


@dataclass(frozen=True)
class Boxes:
    '''Boxes in time and frequency; a true box holds its class, a false one does not.

    Shape:  each (n,): recordings of text, species int64 indices of classes, is_true bool, edges float64
    '''

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
        '''The indices of each recording's boxes.'''
        return rows_by_name(self.recordings.tolist())

    def select(self, rows: np.ndarray) -> 'Boxes':
        '''Some of the boxes. Shape: rows (m,) int, or a mask (n,) bool'''
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        return replace(self, **{name: x[rows] for name, x in values.items() if isinstance(x, np.ndarray)})

    @functools.cached_property
    def class_mask(self) -> np.ndarray:
        '''Whether a box is of a class. Shape: (n, K) bool'''
        return self.species[:, None] == np.arange(len(self.classes))


def read_boxes(true_path: str | Path, false_path: str | Path, classes: Sequence[str] | None = None) -> Boxes:
    '''Read two CSVs of boxes, `recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max`: true and false ones.

    Species i becomes class i of `classes`, or `s{i}` up to the highest id of the files. One file may be empty.

    Errors: KitError with the line of a wrong value, for edges in kHz, or where both files are empty
    '''
    n_classes = 10**5 if classes is None else len(classes)
    true_columns = read_box_columns(true_path, n_classes)
    false_columns = read_box_columns(false_path, n_classes)
    recordings, species, *edges = (true + false for true, false in zip(true_columns, false_columns, strict=True))
    begin_s, end_s, low_hz, high_hz = np.array(edges, np.float64)
    if not species:
        raise KitError(f'{true_path} and {false_path} hold no boxes.')
    names = classes or [f's{i}' for i in range(max(species) + 1)]
    return Boxes(
        classes=tuple(column_of_class(names)),
        recordings=np.array(recordings, str),
        species=np.array(species, np.int64),
        is_true=np.arange(len(species)) < len(true_columns[0]),
        begin_s=begin_s,
        end_s=end_s,
        low_hz=low_hz,
        high_hz=high_hz,
    )


def read_box_columns(path: str | Path, n_classes: int) -> list[list[Any]]:
    '''Read one file's recordings, species, begins, ends, low and high edges, checked.'''
    table = read_table(path, ('recording_id', 'species_id', *BOX_EDGES))
    table.check_names('recording_id', once=False)
    check_line_ends(table)
    expected = f'the index of a class, from 0 to {n_classes - 1}'
    species = table.numbers('species_id', expected, lambda index: 0 <= index < n_classes, int)
    edges = [table.numbers(name) for name in BOX_EDGES]
    for axis, lows, highs in (('t', edges[0], edges[1]), ('f', edges[2], edges[3])):
        for row, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if not high > low:
                raise KitError(f'{table.at(row)}: {axis}_max {high:g} must be above {axis}_min {low:g}.')
    highest = max(edges[3], default=math.inf)
    if highest < LOWEST_HZ:
        raise KitError(f'{path}: no f_max is above {highest:g} Hz: are f_min and f_max in kHz? Multiply them by 1000.')
    return [table.columns['recording_id'], species, *edges]


def box_table(boxes: Boxes, table: str | Path | None) -> Any:
    '''Make a clip table of recordings from their boxes, sorted by name, and of what a CSV adds, if given.

    A class is true with any true box, false with false boxes only, and unknown without boxes.
    A CSV `recording_id,fold` has the folds of all; recordings that are only there get no known label. A clip table adds
    clips without boxes, for example without any call: without a column false_labels, classes that they do not list are
    false. It may have folds, too, of all clips and recordings.
    Source: 32nd place, RFCX Species Audio Detection (whole clips, scored on known labels)
    Errors: KitError for a recording with a box but without a fold, and for one with labels in a table without folds
    '''
    import pandas

    names = sorted(boxes.rows)
    recordings = []
    for name in names:
        rows = boxes.rows[name]
        true = np.unique(boxes.species[rows[boxes.is_true[rows]]])
        false = np.setdiff1d(boxes.species[rows], true)
        true_labels = join_cells(boxes.classes[k] for k in true)
        false_labels = join_cells(boxes.classes[k] for k in false)
        recordings.append([name, true_labels, false_labels])
    frame = pandas.DataFrame(recordings, columns=['fname', 'labels', 'false_labels'])
    if table is None:
        return frame
    content = read_table(table)
    if 'labels' in content.columns:
        clips = read_clip_table(table)
        if 'begin_s' in clips:
            raise KitError(f'{table}: stretches of clips cannot stand beside boxes: leave out begin_s and end_s.')
        with_boxes = clips['fname'].map(audio_stem).isin(map(audio_stem, names))
        if 'fold' not in clips and with_boxes.any():
            raise KitError(f'{table}: {clips["fname"][with_boxes].iloc[0]!r} has boxes, too: leave it out.')
        false_labels = clips.get('false_labels', ALL_OTHERS)
        kept = [name for name in ('fname', 'labels', 'secondary_labels', 'weight', 'source') if name in clips]
        clips = clips[kept].assign(false_labels=false_labels)[~with_boxes]
        missing = {'weight': 1.0, 'source': '', 'secondary_labels': ''}
        frame = pandas.concat([frame, clips], ignore_index=True).fillna(missing)
        if 'fold' not in content.columns:
            return frame
    key = 'fname' if 'fname' in content.columns else 'recording_id'
    for name in (key, 'fold'):
        choose('column', name, content.columns)
    content.check_names(key)
    fold = content.numbers('fold', 'a whole number', lambda number: True, int)
    fold_of = dict(zip(content.columns[key], fold, strict=True))
    with_box = {audio_stem(name): name for name in names}  # the boxes' names are those of the table
    fold_of = {with_box.get(audio_stem(name), name): fold for name, fold in fold_of.items()}
    without_fold = [name for name in names if name not in fold_of]
    if without_fold:
        raise KitError(f'{table} has no fold for {len(without_fold)} recordings with boxes, e.g. {without_fold[0]!r}.')
    in_frame = set(frame['fname'])
    others = [name for name in fold_of if name not in in_frame]
    unknown = pandas.DataFrame({'fname': others, 'labels': '', 'false_labels': ''})
    frame = pandas.concat([frame, unknown], ignore_index=True).fillna({'weight': 1.0, 'source': ''})
    return frame.assign(fold=[fold_of[name] for name in frame['fname']])


def window_targets(boxes: Boxes, recording: str, begin_s: Any, end_s: Any, min_share: float = 0.5) -> np.ndarray:
    '''Label windows of one recording from its boxes: 1, 0 or NaN (unknown) for each class.

    A window covers a box where they overlap by at least `min_share` of the shorter of the two. A class is true where
    the window covers one of its true boxes, false where it covers a false box and overlaps no true one, else unknown.

    Shape:  begin_s, end_s: numbers -> (K,) float32; both (W,) -> (W, K)
    Source: second place, RFCX Species Audio Detection
    '''
    begin = np.asarray(begin_s, np.float64)[..., None]
    end = np.asarray(end_s, np.float64)[..., None]
    rows = boxes.rows.get(recording, np.zeros(0, np.int64))
    box_begin = boxes.begin_s[rows]
    box_end = boxes.end_s[rows]
    is_true = boxes.is_true[rows]
    of_class = boxes.class_mask[rows]
    overlap_s = np.minimum(end, box_end) - np.maximum(begin, box_begin)
    shorter_s = np.minimum(end - begin, box_end - box_begin)
    covers = overlap_s >= min_share * shorter_s
    overlaps_true = (overlap_s > 0) & is_true
    # Each product of bool matrices tells per window and class whether any of its boxes meets the condition.
    # The order matters: an overlap with a true box overrides false, and a covered true box overrides both.
    targets = np.where(covers @ of_class, np.float32(0), np.float32(np.nan))
    targets[overlaps_true @ of_class] = np.nan
    targets[(covers & is_true) @ of_class] = 1
    return targets


def class_bands_hz(boxes: Boxes, margin_hz: float = 100.0) -> np.ndarray:
    '''Find the band that holds all true boxes (or else the false ones) of each class, widened by a margin.

    Shape:  -> (K, 2) float64, low and high
    Source: 32nd place, RFCX Species Audio Detection
    Errors: KitError with the classes that have no box
    '''
    true_mask = boxes.class_mask & boxes.is_true[:, None]
    used = np.where(true_mask.any(axis=0), true_mask, boxes.class_mask)
    without_box = [boxes.classes[k] for k in np.flatnonzero(~used.any(axis=0))]
    if without_box:
        raise KitError(f'{len(without_box)} of {len(boxes.classes)} classes have no box: {", ".join(without_box[:9])}.')
    low = np.where(used, boxes.low_hz[:, None], np.inf).min(axis=0) - margin_hz
    high = np.where(used, boxes.high_hz[:, None], 0.0).max(axis=0) + margin_hz
    return np.stack([low.clip(min=0.0), high], axis=1)
