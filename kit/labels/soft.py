'''Soft labels (probabilities) of clips or windows: their CSV file, and how they fill unknown labels.'''

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

WINDOW_COLUMNS = ('begin_s', 'end_s')


@dataclass(frozen=True)
class SoftLabels:
    '''Soft labels of whole clips, or, with begin_s and end_s, of windows; NaN where unknown.

    Shape:  names (n,), targets (n, K) float32 in [0, 1] or NaN, begin_s and end_s (n,) or both None
    '''

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: np.ndarray
    begin_s: np.ndarray | None = None
    end_s: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'targets', np.asarray(self.targets, np.float32))
        reserved = {*WINDOW_COLUMNS}.intersection(self.classes)
        if reserved:
            raise KitError(f'{min(reserved)!r} is no class: times are begin_s,end_s, both or none.')
        column_of_class([name.strip() for name in self.classes])
        n = len(self.names)
        times = self.times
        if times and not (times[0] < times[1]).all():
            raise KitError('a window must begin at 0 s or later and end after that.')
        keys = set(zip(self.names, *(t.tolist() for t in times), strict=True))
        if '' in self.names or len(keys) < n:
            raise KitError(f'{n} soft labels name {len(keys)} clips or windows: name each once.')

    @property
    def times(self) -> list[np.ndarray]:
        '''begin_s and end_s as float64, or an empty list for whole clips.'''
        return [np.asarray(t, np.float64) for t in (self.begin_s, self.end_s) if t is not None]

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        '''The indices of each clip's rows.'''
        return rows_by_name(self.names)


def write_soft_labels(path: str | Path, soft: SoftLabels) -> None:
    '''Write a CSV `fname[,begin_s,end_s],class...`; an empty cell is an unknown label.'''
    rows: list[list[Any]] = [['fname', *(WINDOW_COLUMNS if soft.times else ()), *soft.classes]]
    for name, *span, probs in zip(soft.names, *soft.times, soft.targets.tolist(), strict=True):
        # Nine digits are enough to read every float32 back exactly.
        cells = ['' if math.isnan(prob) else f'{prob:.9g}' for prob in probs]
        rows.append([name, *map(float, span), *cells])
    write_rows(Path(path), rows)


def read_soft_labels(path: str | Path) -> SoftLabels:
    '''Read what write_soft_labels wrote.'''
    table = read_table(path, exact=True)
    header = tuple(table.columns)
    if header[0] != 'fname':
        raise KitError(f'{path} begins with {header[0]!r}, wanted fname[,begin_s,end_s],class...')
    first_class = 3 if header[1:3] == WINDOW_COLUMNS else 1
    classes = header[first_class:]
    times = [np.array(table.numbers(name)) for name in header[1:first_class]]

    def read_cell(text: str) -> float | None:
        return float(text) if text.strip() else None

    expected = 'a number from 0 to 1, or an empty cell'
    columns = [table.numbers(name, expected, lambda p: p is None or 0 <= p <= 1, read_cell) for name in classes]
    # None becomes NaN in a float array.
    probs = np.array(columns, np.float32).T
    return SoftLabels(tuple(table.columns['fname']), classes, probs, *times)


def fill_unknown(targets: np.ndarray, soft: np.ndarray) -> np.ndarray:
    '''Replace unknown targets by soft labels; known targets stay.'''
    return np.where(np.isnan(targets), soft, targets)


def align_soft_labels(soft: SoftLabels, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    '''The soft labels of these clips and classes, in this order, or NaN.

    Shape:  -> (clips, classes) float32
    '''
    import pandas

    frame = pandas.DataFrame(soft.targets, list(soft.names), list(soft.classes))
    return frame.reindex(index=list(names), columns=list(classes)).to_numpy()


def nearest_window(soft: SoftLabels, name: str, centre_s: Any) -> np.ndarray:
    '''The soft labels of the clip's window with the nearest centre; of two the first.

    Shape:  centre_s: a number -> (K,); (W,) -> (W, K)
    Source: second place, RFCX Species Audio Detection
    '''
    rows = soft.rows[name]
    distances = np.abs(np.asarray(centre_s, np.float64)[..., None] - np.mean(soft.times, axis=0)[rows])
    return soft.targets[rows[distances.argmin(axis=-1)]]
