'''Clip tables, their rows, corrections to them, and target matrices.'''

import ast
import contextlib
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose, misspelt, suggest
from kit.core.files import TextTable, audio_stem, read_table

# Columns of BirdCLEF's and Freesound 2018's own tables that are read as the kit's.
OTHER_NAMES = {'filename': 'fname', 'primary_label': 'labels', 'label': 'labels'}
# The source of soundscapes without labels: they are in no fold, and all models predict their pseudo-labels.
UNLABELLED = 'unlabelled'
# The sources of BirdCLEF's rows. A recipe that does not name them has one loss for all.
BIRDCLEF_SOURCES = ('clips', 'soundscapes', UNLABELLED)
# In a table's `false_labels`, this stands for every class that is not listed in `labels`.
ALL_OTHERS = '*'
# The columns of the kit's own tables. A class with such a name is a header in the wrong line, or would take the place
# of the column where tables have one column per class.
OWN_COLUMNS = (
    'fname', 'recording_id', 'labels', 'false_labels', 'secondary_labels', 'fold', 'weight', 'rating', 'source',
    'group', 'begin_s', 'end_s'
)  # fmt: skip
# The columns that a clip table need not have, as they are compared with misspelt ones.
OPTIONAL_COLUMNS = [name for name in OWN_COLUMNS[3:] if name != 'group']


@dataclass(frozen=True)
class ClipLabels:
    '''The labels of a table, one row per clip or stretch.

    A target is 1 (true), 0 (false) or NaN (unknown). Losses and metrics mask unknown targets.
    Shape:  names (n,), classes (K,), targets (n, K) float32, weights (n,) float32, sources (n,) str
    '''

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: np.ndarray
    weights: np.ndarray
    sources: np.ndarray


def read_clip_table(path: str | Path) -> Any:
    '''Read a clip table as a pandas DataFrame.

    The columns are `fname,labels[,false_labels][,secondary_labels][,fold][,weight][,rating][,source][,begin_s,end_s]`,
    and any others; BirdCLEF's `filename` and `primary_label` are read as `fname` and `labels`, `label` too.
    Every cell stays text, but folds become integers, weights, ratings (0, none, to 5) and times floats.
    Without `false_labels` a class that is not in `labels` is false. With it, only the classes listed there are
    (`*`: all others), and the rest is unknown, as classes in `secondary_labels` are. A row with `begin_s` and `end_s`
    is that stretch of its clip; with both empty it is the whole clip, from 0 to infinity.
    Errors: KitError with the line number
    '''
    import pandas

    table = read_table(path)
    columns = table.columns
    for name, own_name in OTHER_NAMES.items():
        if name in columns and own_name not in columns:
            columns[own_name] = columns.pop(name)
    for name in ('fname', 'labels'):
        if name not in columns:
            raise KitError(f'{path} has no column {name!r}: {suggest(name, columns)}.')
    for name in columns:
        meant = misspelt(name, OPTIONAL_COLUMNS) or name
        if meant != name and meant not in columns:
            raise KitError(f'{path} has a column {name!r}: rename it to {meant!r}, or otherwise if it is none.')
    if not table.lines:
        raise KitError(f'{path} holds no clips: add a line per clip.')
    table.check_names('fname', once='begin_s' not in columns)
    check_line_ends(table)
    check_label_cells(table)
    if 'begin_s' in columns or 'end_s' in columns:
        read_stretches(table)
    if 'false_labels' in columns:
        for row, (labels, false_labels) in enumerate(zip(columns['labels'], columns['false_labels'], strict=True)):
            both = set(split_labels(labels)) & set(split_labels(false_labels))
            if both:
                raise KitError(f'{table.at(row)}: {min(both)!r} stands in labels and in false_labels: remove one.')
    if 'fold' in columns:
        columns['fold'] = table.numbers('fold', 'a whole number from -2', lambda fold: -3 < fold < 10**9, int)
    if 'rating' in columns:
        columns['rating'] = [text or '0' for text in columns['rating']]
        columns['rating'] = table.numbers('rating', 'a number from 0 to 5', lambda rating: 0 <= rating <= 5)
    if 'weight' in columns:
        columns['weight'] = table.numbers('weight', 'a number above 0', lambda weight: 0 < weight < math.inf)
    return pandas.DataFrame(columns)


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
            stem = audio_stem(name)
            name = f'{stem}_{end_s:.12g}'
            if row_of_name.setdefault(name, row) != row:
                name = f'{stem}_{begin_s:.12g}_{end_s:.12g}'
        unique.append(name)
    return unique


def rows_by_name(names: Iterable[str]) -> dict[str, np.ndarray]:
    '''Find the rows of each name. Shape: -> arrays (rows of that name,) int64, ascending'''
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: np.array(of_name) for name, of_name in rows.items()}


def split_labels(text: str) -> tuple[str, ...]:
    '''Split the labels of one clip at commas, without blanks and empty parts.

    A name with a comma is quoted, as in `"Speech, male",Rain` and by join_cells. Python and JSON lists are read too.
    '''
    if not isinstance(text, str):
        raise KitError(f'labels must be text, got {text!r}: read the table with read_clip_table.')
    parts = text.split(',')
    # Python would join the neighbours of numpy's ['Rain' 'Wind'].
    if text.strip().startswith('[') and not re.search(r"['\"]\s+['\"]", text):
        with contextlib.suppress(ValueError, SyntaxError):
            names = ast.literal_eval(text.strip())
            if all(isinstance(name, str) for name in names):
                parts = names
    elif '"' in text:
        parts = next(csv.reader([text], skipinitialspace=True))
    return tuple(filter(None, (part.strip() for part in parts)))


def check_line_ends(table: TextTable) -> None:
    '''Raise KitError at a cell with a lone carriage return: unquoted, as csv and pandas write it, it ends the line.'''
    for column, cells in table.columns.items():
        for row, cell in enumerate(cells):
            if '\r' in cell and '\n' not in cell:
                raise KitError(f'{table.at(row)}: {column} is {cell!r}: remove the carriage return.')


def check_label_cells(table: TextTable) -> None:
    '''Raise KitError for labels that look wrongly separated, or are named as a column of the kit.'''
    first_cells: dict[str, tuple[int, str]] = {}
    columns = ('labels', 'false_labels', 'secondary_labels')
    for column in (name for name in columns if name in table.columns):
        for row, text in enumerate(table.columns[column]):
            for name in split_labels(text):
                first_cells.setdefault(name, (row, column))
    # Names that another separator joins have parts that are classes by themselves, or parts of several names.
    parts = {name: {part.strip() for part in re.split(r'[;|\t]', name)} - {''} for name in first_cells}
    count = Counter(part for name in first_cells for part in parts[name])
    for name, (row, column) in first_cells.items():
        if name in OWN_COLUMNS:
            raise KitError(f"{table.at(row)}: a class cannot be named {name!r}, as a column of the kit's files is.")
        if name in ('nan', 'NaN'):
            raise KitError(f'{table.at(row)}: {name!r} is an exported missing value: leave the cell empty.')
        is_quoted = len(name) > 1 and name[0] == name[-1] == "'"
        is_cut = name[0] in '["' or (name[-1] in ']"' and '[' not in name)
        is_joined = parts[name] != {name} and any(count[part] > 1 for part in parts[name])
        if is_quoted or is_cut or is_joined or '\r' in name or '\n' in name:
            cure = 'separate names by commas, and put a name that holds a comma in double quotes'
            cell = table.columns[column][row]
            raise KitError(f'{table.at(row)}: {column} is {cell!r}, which gives the class {name!r}: {cure}.')


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    '''Collect the classes that occur in label texts, sorted by code point.'''
    return tuple(sorted({name for text in labels for name in split_labels(text)}))


def classes_of_template(path: str | Path) -> tuple[str, ...]:
    '''Read the class columns of a sample submission: all columns but the first, byte for byte.'''
    id_column, *classes = read_table(path, exact=True).columns
    if not classes:
        raise KitError(f'{path} names no classes, only {id_column!r}: its first column is the id.')
    return tuple(classes)


def column_of_class(classes: Sequence[str]) -> dict[str, int]:
    '''Map each class to its column.'''
    column = {name: k for k, name in enumerate(classes)}
    for name in OWN_COLUMNS:
        if name in column:
            raise KitError(f"a class cannot be named {name!r}, as a column of the kit's files is: rename it.")
    if len(column) != len(classes):
        raise KitError(f'{len(classes)} classes have {len(column)} names: remove the repeated ones.')
    return column


def label_targets(
    labels: Sequence[str], classes: Sequence[str], false_labels: Sequence[str] | None = None
) -> np.ndarray:
    '''Encode label texts as targets: 1, 0 or NaN, as read_clip_table says.

    Shape:  n texts each -> (n, K) float32
    '''
    column = column_of_class(classes)
    targets = np.full((len(labels), len(classes)), 0 if false_labels is None else np.nan, np.float32)
    no_classes: set[str] = set()
    # True comes last, because * sets all classes to false.
    for value, texts in ((0, false_labels or ()), (1, labels)):
        for row, text in enumerate(texts):
            for name in split_labels(text):
                if name in column:
                    targets[row, column[name]] = value
                elif name == ALL_OTHERS and value == 0:
                    targets[row] = 0
                else:
                    no_classes.add(name)
    if no_classes:
        first_ten = ', '.join(repr(name) for name in sorted(no_classes)[:10])
        wrong = f'{len(no_classes)} labels are none of the {len(classes)} classes: {first_ten}'
        raise KitError(f'{wrong}. Correct or add them: {suggest(min(no_classes), classes)}.')
    return targets


def clip_labels(table: Any, classes: Sequence[str] | None = None) -> ClipLabels:
    '''Encode a clip table as arrays.

    Without `classes`, they are all the classes in the table, sorted. Weights default to 1, sources to "".
    '''
    labels = list(table['labels'])
    false_labels = list(table['false_labels']) if 'false_labels' in table else None
    if classes is None:
        classes = [name for name in class_names(labels + (false_labels or [])) if name != ALL_OTHERS]
    targets = label_targets(labels, classes, false_labels)
    return ClipLabels(
        names=tuple(table['fname']),
        classes=tuple(classes),
        targets=np.where(is_secondary(table, classes), np.float32(np.nan), targets),
        weights=np.asarray(table.get('weight', np.ones(len(table))), np.float32),
        sources=np.asarray(table.get('source', [''] * len(table)), str),
    )


def is_secondary(table: Any, classes: Sequence[str]) -> np.ndarray:
    '''Find the classes in a row's `secondary_labels` and not in its `labels`. Shape: -> (n, K) bool'''
    mask = np.zeros((len(table), len(classes)), bool)
    if 'secondary_labels' not in table:
        return mask
    column = column_of_class(classes)
    for row, (text, labels) in enumerate(zip(table['secondary_labels'], table['labels'], strict=True)):
        if text:
            names = {*split_labels(text)} - {*split_labels(labels)}
            mask[row, [column[name] for name in names if name in column]] = True
    return mask


def rating_weights(table: Any) -> np.ndarray:
    '''A clip's rating / 5, at least .1, as its weight; 1 for a rating of 0, which means none. Shape: -> (n,)

    Source: second place, BirdCLEF 2023
    '''
    ratings = np.asarray(table.get('rating', np.zeros(len(table))), np.float32)
    return np.where(ratings > 0, (ratings / 5).clip(0.1, 1), np.float32(1))


def scored_truth(labels: ClipLabels, recipe: Mapping[str, Any]) -> np.ndarray:
    '''Targets for validation: as labelled, but unknown in sources with scored=false and in unscored classes.

    Shape:  -> (n, K)
    '''
    unscored = [name for name, settings in recipe.get('sources', {}).items() if not settings['scored']]
    is_unscored = np.isin(labels.sources, unscored)[:, None]
    if recipe.get('scored_classes'):
        is_unscored = is_unscored | ~np.isin(labels.classes, recipe['scored_classes'])
    return np.where(is_unscored, np.float32(np.nan), labels.targets)


def read_class_values(path: str | Path, column: str) -> dict[str, float]:
    '''Read one number in [0, 1] per class from a CSV of class,<column>.'''
    table = read_table(path, ('class', column), exact=True)
    table.check_names('class')
    return dict(zip(table.columns['class'], table.numbers(column, '0 to 1', lambda p: 0 <= p <= 1), strict=True))


def values_of_classes(values: Mapping[str, float], classes: Sequence[str], others: np.ndarray) -> np.ndarray:
    '''Order values by class, with `others` where there is none. Shape: others (K,) -> (K,)'''
    column = column_of_class(classes)
    changed = others.copy()
    for name, value in values.items():
        changed[choose('class', name, column)] = value
    return changed


def known_prevalences(targets: np.ndarray) -> list[float]:
    '''The share of true labels among each class's known ones, or among all known ones if a class has none.

    Shape:  (n, K) -> K numbers in [0, 1]
    '''
    n_known = (~np.isnan(targets)).sum(axis=0)
    n_true: Any = np.nansum(targets, axis=0, dtype=np.float64)
    overall = n_true.sum() / max(1, n_known.sum())
    return np.where(n_known > 0, n_true / np.maximum(n_known, 1), overall).tolist()


def read_corrections(path: str | Path) -> dict[str, str | None]:
    '''Read the corrected labels of clips; None drops a clip.

    The file is JSON, `{"a.wav": "Bark,Meow", "b.wav": null}`, or CSV, `fname,labels[,drop]`, with 1 for `drop`.
    Source: first place, Freesound 2019 (dropped and corrected the clips that earlier models scored badly)
    '''
    pairs: Any
    if Path(path).suffix.lower() == '.json':
        try:
            text = Path(path).read_text(encoding='utf-8-sig')
            # A dict would hide a repeated clip, so objects are read as lists of pairs.
            pairs = json.loads(text, object_pairs_hook=list)
        except (OSError, ValueError) as error:
            raise KitError(f'cannot read the corrections {path}: {error}.') from error
    else:
        table = read_table(path, ('fname', 'labels'))
        names, labels = table.columns['fname'], table.columns['labels']
        drops = table.columns.get('drop', [''] * len(names))
        for row, (text, drop) in enumerate(zip(labels, drops, strict=True)):
            if drop not in ('', '0', '1') or (drop == '1' and text.strip()):
                raise KitError(f'{table.at(row)}: drop is {drop!r}, wanted 1 without labels, or labels.')
        pairs = [(name, None if drop == '1' else text) for name, text, drop in zip(names, labels, drops, strict=True)]
    corrections: dict[str, str | None] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        name, text = pair if isinstance(pair, tuple) else ('', pair)
        if not name or name in corrections or not isinstance(text, str | None):
            raise KitError(f'{path} corrects {name!r} to {text!r}, wanted labels or null for each clip, once.')
        corrections[name] = None if text == 'remove' else text  # the word of the first place's file
    return corrections


def apply_corrections(table: Any, corrections: Mapping[str, str | None]) -> Any:
    '''Copy a clip table with corrected labels and without dropped clips.

    The labels of a corrected clip are complete: its other classes become false.
    '''
    classes = class_names([*table['labels'], *table.get('false_labels', ())])
    clips = set(table['fname'])
    for name, text in corrections.items():
        if name not in clips:
            raise KitError(f'the corrected clip {name!r} is not in the table of {len(clips)} clips.')
        for label in split_labels(text or ''):
            if label not in classes:
                raise KitError(f'{name!r} is corrected to a new label {label!r}: {suggest(label, classes)}.')
    dropped = [name for name, text in corrections.items() if text is None]
    corrected = table[~table['fname'].isin(dropped)].reset_index(drop=True)
    if not len(corrected):
        raise KitError('the corrections drop every clip of the table.')
    is_corrected = corrected['fname'].isin(list(corrections))
    if corrected['fname'][is_corrected].duplicated().any():
        raise KitError('a corrected clip has several stretches in the table: correct their rows there.')
    corrected.loc[is_corrected, 'labels'] = corrected['fname'].map(corrections)
    for column, cell in (('false_labels', ALL_OTHERS), ('secondary_labels', '')):
        if column in corrected:
            corrected.loc[is_corrected, column] = cell
    return corrected
