'''Read a sample submission, find each row's file, and write the CSV.'''

import contextlib
import functools
import json
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.decode import list_audio
from kit.core.errors import KitError
from kit.core.files import audio_stem, join_cells, read_table, write_text


@dataclass(frozen=True)
class Template:
    '''The rows and columns of a submission, byte for byte.

    `answer` is the one column of a template without scores: `label`, the `n_labels` best classes; `birds`,
    those above .5; or `target`, whether a class is above .5, where a row
    <stem>_<class>_<second> is a cell: (row, class) of `cells`.
    '''

    id_column: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    answer: str = ''
    n_labels: int = 3
    cell_ids: tuple[str, ...] = ()
    cells: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class RowPlan:
    '''The file of each row, and the second at which its window ends.

    `form` is how the ids name files: "name" (with extension), "stem" or "window" (<stem>_<end second>). It is "window"
    where any row is a window; rows of whole files, `whole_names`, may stand among these, and have no end.
    `files` and `idle_files` are positions in the list of files. `ids_hold_beginnings`: the ids' seconds are where
    windows begin, not where they end. `near_names` are ids whose file differs in case, extension, folder, slashes or
    the form of Unicode. `choices` say which of several files of one stem is used.
    '''

    form: str
    files: tuple[int | None, ...]
    ends_s: tuple[float | None, ...]
    idle_files: tuple[int, ...]
    ids_hold_beginnings: bool = False
    near_names: tuple[str, ...] = ()
    whole_names: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def rows_without_file(self, ids: Sequence[str]) -> list[str]:
        '''The ids of rows without a file.'''
        return [name for name, file in zip(ids, self.files, strict=True) if file is None]

    @functools.cached_property
    def rows_of(self) -> dict[int, list[int]]:
        '''The rows of each file that has any.'''
        rows: dict[int, list[int]] = {}
        for row, file in enumerate(self.files):
            if file is not None:
                rows.setdefault(file, []).append(row)
        return rows

    @functools.cached_property
    def period_s(self) -> float | None:
        '''Seconds of a window row: the most frequent distance between two ends in one file, of equals the smallest.'''
        ends: dict[int, set[float]] = {}
        for file, end_s in zip(self.files, self.ends_s, strict=True):
            if file is not None and end_s is not None:
                ends.setdefault(file, set()).add(end_s)
        gaps = [later - earlier for times in ends.values() for earlier, later in pairwise(sorted(times))]
        count = Counter(round(gap, 6) for gap in gaps or [min(times) for times in ends.values()])
        return min(count, key=lambda gap: (-count[gap], gap), default=None)


def read_template(path: Path) -> Template:
    '''Read a sample submission: a column of ids, then the classes, byte for byte.'''
    table = read_table(path, exact=True, first_column=True)
    id_column, *classes = table.columns
    if not classes:
        raise KitError(f'{path} has no class columns after {id_column!r}: give the sample submission.')
    table.check_names(id_column)
    if not id_column.strip() or id_column.startswith('Unnamed: '):
        raise KitError(f'{path}: the first column has no name, as an index that pandas saved: use to_csv(index=False).')
    ids = tuple(table.columns[id_column])
    if classes == ['target'] and not all(split_window(name)[1] is not None and name.count('_') > 1 for name in ids):
        return Template(id_column, ids, ('target',))  # a class as any other
    if len(classes) == 1 and classes[0] in ('label', 'birds', 'target'):
        cells = read_table(path, exact=True).columns['label'] if classes[0] == 'label' else []
        n_labels = max((len(cell.split()) for cell in cells), default=0) or 3
        return Template(id_column, ids, (), answer=classes[0], n_labels=n_labels)
    return Template(id_column, ids, tuple(classes))


def with_classes(template: Template, classes: Sequence[str]) -> Template:
    '''Give the models' classes to a template without scores. A class that no model knows is never above .5.'''
    if template.answer != 'target':
        return replace(template, classes=tuple(classes))
    column = {name: k for k, name in enumerate(classes)}
    rows: dict[str, int] = {}
    cells = []
    for name in template.ids:
        head, _, end = name.rpartition('_')
        stem, _, class_name = head.rpartition('_')
        row = rows.setdefault(f'{stem}_{end}', len(rows))
        cells.append((row, column.get(class_name, -1)))
    return replace(template, ids=tuple(rows), classes=tuple(classes), cell_ids=template.ids, cells=tuple(cells))


def answer_lines(template: Template, scores: np.ndarray) -> list[str]:
    '''Format the rows of a template without scores as lines of CSV.'''
    if template.answer == 'target':
        answers = [str(k >= 0 and bool(scores[row, k] > 0.5)) for row, k in template.cells]
        return [f'{join_cells((name, answer))}\n' for name, answer in zip(template.cell_ids, answers, strict=True)]
    lines = []
    for name, row in zip(template.ids, scores, strict=True):
        best = np.argsort(-row, kind='stable')
        chosen = best[: template.n_labels] if template.answer == 'label' else best[row[best] > 0.5]
        text = ' '.join(template.classes[k] for k in chosen) or 'nocall'
        lines.append(f'{join_cells((name, text))}\n')
    return lines


def split_window(name: str) -> tuple[str, float | None]:
    '''Split an id <stem>_<end second>; return (name, None) for others.'''
    stem, _, end = name.rpartition('_')
    digits = end.replace('.', '', 1)
    is_time = stem and len(end) < 12 and digits.isascii() and digits.isdigit()
    return (stem, float(end)) if is_time else (name, None)


def file_identities(paths: Sequence[Path]) -> list[Hashable]:
    '''What identifies each file: it is equal for two paths to one file.'''
    identities: list[Hashable] = []
    for path in paths:
        try:
            status = path.stat()
            identities.append((status.st_dev, status.st_ino))
        except OSError:
            identities.append(str(path))
    return identities


def near_name(name: str) -> str:
    '''Reduce a file's name to what is left without folder, extension, case and the form of Unicode.'''
    base = unicodedata.normalize('NFC', name).replace('\\', '/').rpartition('/')[2].lower()
    return audio_stem(base)


def unique_positions(names: Sequence[str], identities: Sequence[Hashable]) -> dict[str, int]:
    '''Find the position of each name that means one file.'''
    count = Counter(name for name, _ in set(zip(names, identities, strict=True)))
    positions: dict[str, int] = {}
    for i, name in enumerate(names):
        if count[name] == 1:
            positions.setdefault(name, i)
    return positions


def positions_by_name(names: Sequence[str], identities: Sequence[Hashable]) -> dict[str, int]:
    '''Find each name's position by its whole path, or by its last part where that means one file.'''
    bases = [name.rpartition('/')[2] for name in names]
    return unique_positions(bases, identities) | {name: i for i, name in enumerate(names)}


def plan_notes(plan: RowPlan) -> list[str]:
    '''Say what was assumed to find the rows' files and times.'''
    notes = []
    if plan.near_names:
        n, example = len(plan.near_names), plan.near_names[0]
        notes.append(f"{n} names differ from their file's in case, extension or folder, e.g. {example!r}")
    if plan.choices:
        notes.append(f'{len(plan.choices)} ids have SEVERAL FILES, e.g. {plan.choices[0]}')
    if plan.whole_names:
        n, example = len(plan.whole_names), plan.whole_names[0]
        notes.append(f'{n} rows are whole files, e.g. {example!r}, and the others windows of files')
    if plan.form == 'window':
        ends = 'BEGINNINGS, as one begins at second 0' if plan.ids_hold_beginnings else 'ends'
        notes.append(f"rows are windows of {plan.period_s:g} s, as far apart as ids; the ids' seconds are their {ends}")
    return notes


def locate_clips(names: Sequence[str], folder: Path) -> list[Path]:
    '''Find the files of a table's clips as plan_rows does; a file that is not found keeps its name as its path.

    Errors: KitError for a missing folder, and as plan_rows
    '''
    paths = list_audio(folder)
    files = [path.relative_to(folder).as_posix() for path in paths]
    plan = plan_rows(names, files, file_identities(paths))
    if plan.near_names:
        print(f'note: {plan_notes(plan)[0]}', flush=True)
    if plan.choices:
        raise KitError(f'{plan.choices[0]}, unless you keep one alone.')
    located = []
    for name, file, end_s in zip(names, plan.files, plan.ends_s, strict=True):
        located.append(paths[file] if file is not None and end_s is None else folder / name)
    return located


def plan_rows(ids: Sequence[str], files: Sequence[str], identities: Sequence[Hashable] | None = None) -> RowPlan:
    '''Find every row's file, with the form of id that finds most files; rows it does not find are tried in the others.

    Two paths with one identity are one file: each is found, and neither is ambiguous.

    Shape:  ids of rows, files as paths relative to the audio folder -> one entry per row
    '''
    identities = files if identities is None else identities
    stems = [name.rpartition('.')[0] or name for name in files]
    by_name = positions_by_name(files, identities)
    by_stem = positions_by_name(stems, identities)
    windows = [split_window(name) for name in ids]
    candidates = {
        'name': [by_name.get(name) for name in ids],
        'stem': [by_stem.get(name) for name in ids],
        'window': [by_stem.get(stem, by_name.get(stem)) if end_s is not None else None for stem, end_s in windows],
    }
    form = min(candidates, key=lambda kind: candidates[kind].count(None))
    found = list(candidates[form])
    kinds = [form] * len(found)
    missing = [row for row, file in enumerate(found) if file is None]
    # A whole file that another row names is no other row's; windows share theirs.
    taken = {identities[file] for file in found if file is not None and form != 'window'}
    near_files = unique_positions([near_name(name) for name in files], identities) if missing else {}
    # BirdCLEF 2021 names 10534_SSW_20170429.ogg in its ids 10534_SSW.
    by_start = unique_positions(['_'.join(stem.split('_')[:2]) for stem in stems], identities) if missing else {}
    for row in missing:
        stem, end_s = windows[row]
        files_of_row = {kind: column[row] for kind, column in candidates.items()}
        near = {'near name': near_files.get(near_name(ids[row]))}
        if end_s is not None:
            near['near window'] = near_files.get(near_name(stem), by_start.get(stem))
        files_of_row |= {kind: near[kind] for kind in sorted(near, reverse=form == 'window')}
        for kind, file in files_of_row.items():
            if file is not None and identities[file] not in taken:
                found[row], kinds[row] = file, kind
                break
    count = Counter(stem for stem, _ in set(zip(stems, identities, strict=True)))
    choices = {}
    for kind, file, (stem, _) in zip(kinds, found, windows, strict=True):
        is_stem = kind == 'stem' or (kind == 'window' and stem in by_stem)
        if is_stem and file is not None and count[stems[file]] > 1:
            names = ' or '.join(name for name, stem in zip(files, stems, strict=True) if stem == stems[file])
            choices[stems[file]] = f'the id {stems[file]!r} could mean {names}: {files[file]} is used'
    ends_s = tuple(end_s if kind.endswith('window') else None for kind, (_, end_s) in zip(kinds, windows, strict=True))
    near_names = tuple(ids[row] for row in missing if kinds[row].startswith('near'))
    whole_names = []
    if any(kind.endswith('window') for kind in kinds):
        form = 'window'
        rows = zip(ids, found, ends_s, strict=True)
        whole_names = [name for name, file, end_s in rows if file is not None and end_s is None]
    used = {identities[file] for file in found if file is not None}
    idle = tuple(i for i, identity in enumerate(identities) if identity not in used)
    plan = RowPlan(form, tuple(found), ends_s, idle, near_names=near_names, whole_names=tuple(whole_names))
    plan = replace(plan, choices=tuple(choices.values()))
    # No window ends at second 0, so such ids hold the beginnings of windows.
    if any(end_s == 0 and file is not None for end_s, file in zip(ends_s, found, strict=True)):
        period_s = plan.period_s
        if not period_s:
            raise KitError(f'the id {ids[ends_s.index(0)]!r} names a window that ends at second 0: give its end.')
        ends_s = tuple(None if end_s is None else end_s + period_s for end_s in ends_s)
        return replace(plan, ends_s=ends_s, ids_hold_beginnings=True)
    return plan


def format_score(value: float) -> str:
    '''Format a float with nine significant digits; 0 is 0.0.'''
    text = format(value, '.9g')
    return text if set(text) & set('.en') else text + '.0'


def format_rows(scores: np.ndarray) -> list[str]:
    '''Format rows of floats as lines of CSV. Shape: (R, K) -> R texts'''
    if len(scores) > 1 and (scores == scores[0]).all():
        return format_rows(scores[:1]) * len(scores)
    # One format for a whole row is three times as fast, but writes 1 for 1.0.
    row_format = ','.join(['%.9g'] * scores.shape[1])
    lines = [row_format % tuple(row) for row in scores.tolist()]
    for row in np.flatnonzero((np.abs(scores - np.rint(scores)) < 1e-8 * np.abs(scores).clip(min=1)).any(axis=1)):
        lines[row] = ','.join(map(format_score, scores[row].tolist()))
    return lines


def write_submission(path: Path, template: Template, scores: np.ndarray) -> None:
    '''Write the template's CSV.'''
    if scores.shape != (len(template.ids), len(template.classes)) or not np.isfinite(scores).all():
        raise KitError(f'scores {scores.shape} do not fit the template or are not all finite.')
    columns = (template.answer,) if template.answer else template.classes
    if template.answer:
        lines = answer_lines(template, scores)
    else:
        ids: Sequence[str] = template.ids
        if any(mark in name for mark in ',"\r\n' for name in ids):
            ids = [join_cells((name,)) for name in ids]
        lines = [f'{name},{row}\n' for name, row in zip(ids, format_rows(scores), strict=True)]
    write_text(path, ''.join([f'{join_cells((template.id_column, *columns))}\n', *lines]))


def report_path(out: Path) -> Path:
    '''The path of a submission's report: submission.json beside submission.csv.'''
    return out.with_suffix('.json')


def read_report(out: Path) -> dict[str, Any]:
    '''Read a submission's last report; empty where none can be read.'''
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(report_path(out).read_bytes()))
    return {}
