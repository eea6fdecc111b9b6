'''Stretches: rows of a clip table that are a part of a recording, with begin and end.'''

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.core.files import TextTable


def read_stretches(table: TextTable) -> None:
    '''Turn the columns begin_s and end_s into numbers, in place.'''
    columns = table.columns
    if not {'begin_s', 'end_s'} <= columns.keys():
        raise KitError(f'{table.path} has begin_s or end_s, not both: add the other, empty for a whole clip.')
    for name, whole_clip in (('begin_s', '0'), ('end_s', 'inf')):
        columns[name] = [text or whole_clip for text in columns[name]]
        columns[name] = table.numbers(name, 'seconds, or an empty cell', lambda seconds: seconds >= 0)
    rows_above = set()
    for row, stretch in enumerate(zip(columns['fname'], columns['begin_s'], columns['end_s'], strict=True)):
        _, begin_s, end_s = stretch
        if begin_s >= end_s or 0 < begin_s < end_s == math.inf:
            raise KitError(f'{table.at(row)}: {stretch} is no stretch: begin_s must be below end_s.')
        if stretch in rows_above:
            raise KitError(f'{table.at(row)}: {stretch} stands above already: remove one of the lines.')
        rows_above.add(stretch)


def stretches_of(table: Any) -> np.ndarray:
    '''Begin and end of each row of a clip table. A whole clip lasts from 0 to infinity. Shape: -> (n, 2), seconds'''
    if 'begin_s' not in table:
        return np.tile([0.0, math.inf], (len(table), 1))
    return np.asarray(table[['begin_s', 'end_s']], np.float64)


def is_validated(names: Sequence[str], stretches: np.ndarray) -> np.ndarray:
    '''Find the rows that validation scores: whole clips, and stretches of recordings without such a row.

    Shape:  n names, stretches (n, 2) -> (n,) bool
    '''
    is_whole = np.isinf(stretches[:, 1])
    whole_names = {name for name, whole in zip(names, is_whole, strict=True) if whole}
    has_no_whole = np.array([name not in whole_names for name in names], bool)
    return is_whole | has_no_whole


def row_names(names: Sequence[str], stretches: np.ndarray) -> list[str]:
    '''Name rows: a whole clip by its name, a stretch <name without extension>_<end second>, as rows of submissions are.

    Stretches that end together have their beginning in the name, too.
    '''
    row_of_name: dict[str, int] = {}
    unique = []
    for row, (name, (begin_s, end_s)) in enumerate(zip(names, stretches.tolist(), strict=True)):
        if math.isfinite(end_s):
            stem = name.rpartition('.')[0] or name
            name = f'{stem}_{end_s:g}'
            if row_of_name.setdefault(name, row) != row:
                name = f'{stem}_{begin_s:g}_{end_s:g}'
        unique.append(name)
    return unique
