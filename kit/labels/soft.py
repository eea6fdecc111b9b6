"""Soft labels of clips or windows in, a CSV out and back; what a teacher says where labels are unknown."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.core.files import read_table, write_rows
from kit.labels.table import column_of_class, rows_by_name

WINDOW_COLUMNS = ("begin_s", "end_s")


@dataclass(frozen=True)
class SoftLabels:
    """Beliefs about clips, or about their windows where they have times; NaN where nothing is believed.

    Shape:  names (n,), targets (n, K) float32 in [0, 1] or NaN, begin_s and end_s (n,) or both None
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: np.ndarray
    begin_s: np.ndarray | None = None
    end_s: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", np.asarray(self.targets, np.float32))
        column_of_class([name.strip() for name in self.classes])
        if reserved := {"fname", *WINDOW_COLUMNS}.intersection(self.classes):
            raise KitError(f"{min(reserved)!r} is no class: times are begin_s,end_s, both or none.")
        times, shape, n = self.times, self.targets.shape, len(self.names)
        wanted = n, len(self.classes)
        if len(times) == 1 or shape != wanted or any(t.shape != (n,) for t in times):
            came = f"soft labels {shape} with times {[t.shape for t in times]}"
            raise KitError(f"{came}, wanted {wanted} and both begin_s and end_s ({n},) or neither.")
        if ((self.targets < 0) | (self.targets > 1)).any():
            raise KitError("soft labels must be in [0, 1], or NaN where unknown.")
        if times and not ((times[0] >= 0) & (times[0] < times[1]) & (times[1] < np.inf)).all():
            raise KitError("a window must begin at 0 s or later and end after that.")
        keys = set(zip(self.names, *(t.tolist() for t in times), strict=True))
        if "" in self.names or len(keys) < n:
            raise KitError(f"{n} soft labels name {len(keys)} clips or windows: name each once.")

    @property
    def times(self) -> list[np.ndarray]:
        """begin_s and end_s, where there are any."""
        return [np.asarray(t, np.float64) for t in (self.begin_s, self.end_s) if t is not None]

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of each clip."""
        return rows_by_name(self.names)


def write_soft_labels(path: str | Path, soft: SoftLabels) -> None:
    """A CSV `fname[,begin_s,end_s],class...`, whole; an empty cell is unknown, float32 comes back exactly."""
    rows: list[list[Any]] = [["fname", *(WINDOW_COLUMNS if soft.times else ()), *soft.classes]]
    for name, *span, row in zip(soft.names, *soft.times, soft.targets.tolist(), strict=True):
        rows.append([name, *map(float, span), *("" if math.isnan(x) else f"{x:.9g}" for x in row)])
    write_rows(Path(path), rows)


def read_soft_labels(path: str | Path) -> SoftLabels:
    """What write_soft_labels wrote. Errors: KitError that names the line"""
    table = read_table(path, exact=True)
    header = tuple(table.columns)
    if header[0] != "fname":
        raise KitError(f"{path} begins with {header[0]!r}, wanted fname[,begin_s,end_s],class...")
    first = 3 if header[1:3] == WINDOW_COLUMNS else 1
    times = [np.array(table.numbers(name)) for name in header[1:first]]

    def belief(text: str) -> float | None:
        return float(text) if text.strip() else None

    wanted = "a number from 0 to 1, or an empty cell", lambda p: p is None or 0 <= p <= 1, belief
    beliefs = np.array([table.numbers(name, *wanted) for name in header[first:]], np.float32).T
    return SoftLabels(tuple(table.columns["fname"]), header[first:], beliefs, *times)


def fill_unknown(targets: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Soft labels only where targets are unknown: what is known stays. Shape: two of one shape -> the same"""
    if targets.shape != soft.shape:
        raise KitError(f"targets {targets.shape}, soft labels {soft.shape}: align_soft_labels first.")
    return np.where(np.isnan(targets), soft, targets)


def align_soft_labels(soft: SoftLabels, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Soft labels of whole clips in the order of these clips and classes; NaN where they say nothing.

    Shape:  -> (clips, classes) float32
    """
    if soft.times:
        raise KitError("these are soft labels of windows: read them with nearest_window.")
    # The row and column of NaN added last are what clips and classes without a belief find.
    padded = np.pad(soft.targets, ((0, 1), (0, 1)), constant_values=np.nan)
    column = column_of_class(soft.classes)
    rows = [soft.rows[name][0] if name in soft.rows else -1 for name in names]
    return padded[np.ix_(rows, [column.get(name, -1) for name in classes])]


def nearest_window(soft: SoftLabels, name: str, centre_s: Any) -> np.ndarray:
    """The soft labels of the clip's window whose centre is nearest, the first of several.

    Shape:  centre_s: a number -> (K,); (W,) -> (W, K)
    Source: second place, RFCX Species Audio Detection
    """
    if not soft.times or name not in soft.rows:
        raise KitError(f"the soft labels hold no windows of {str(name)!r}: predict it in windows.")
    rows = soft.rows[name]
    centres = np.mean(soft.times, axis=0)[rows]
    distances = np.abs(np.asarray(centre_s, np.float64)[..., None] - centres)
    return np.asarray(soft.targets[rows[distances.argmin(axis=-1)]])
