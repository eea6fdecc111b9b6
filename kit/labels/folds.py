'''Cross-validation folds that spread every class evenly and keep groups whole.'''

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.labels.table import UNLABELLED, class_names, label_targets


def make_folds(table: Any, n_folds: int = 5, seed: int = 0, group_column: str | None = None) -> np.ndarray:
    '''Assign a fold to every row of a clip table: classes are spread evenly, and no group is in two folds.

    Rows with the same fname, or the same text in `group_column` (if not empty), form one group. Fold -1 is in every
    training and never held out: it has the groups with the only clips of a class, and soundscapes without labels.

    Shape:  n rows -> (n,) int64 in -1 .. n_folds - 1
    Source: Sechidis, Tsoumakas & Vlahavas 2011, On the Stratification of Multi-Label Data
    Errors: KitError for fewer than 2 folds, fewer groups than folds, or a missing column
    '''
    if n_folds < 2:
        raise KitError(f'n_folds must be at least 2, got {n_folds}.')
    if not hasattr(table, 'columns'):
        raise KitError(f'make_folds needs a table, got {type(table).__name__}: pass read_clip_table(path).')
    for column in ('labels', group_column or 'labels'):
        choose('column', column, table)
    groups, group_of_row = np.unique(group_keys(table, group_column), return_inverse=True)
    labels = list(table['labels'])
    targets = label_targets(labels, class_names(labels)).astype(np.int64)
    counts = np.zeros((len(groups), targets.shape[1]), np.int64)
    np.add.at(counts, group_of_row, targets)
    is_unlabelled = np.asarray(table.get('source', [''] * len(table)), str) == UNLABELLED
    in_folds = ~np.isin(np.arange(len(groups)), group_of_row[is_unlabelled])
    if in_folds.sum() < n_folds:
        raise KitError(f'{n_folds} folds need as many groups, got {in_folds.sum()} in {len(table)} rows.')
    # A model that has never met a class cannot be validated on it. In tiny tables there is no choice.
    has_company = ~counts[:, (counts > 0).sum(axis=0) == 1].any(axis=1)
    if (in_folds & has_company).sum() >= 2 * n_folds:
        in_folds &= has_company
    sizes = np.bincount(group_of_row, minlength=len(groups))
    folds = np.full(len(groups), -1, np.int64)
    folds[in_folds] = stratify_groups(counts[in_folds], sizes[in_folds], n_folds, seed)
    return folds[group_of_row]


def group_keys(table: Any, group_column: str | None) -> np.ndarray:
    '''A text for each row, equal for rows that share a clip or a group, also through others.'''
    clips = [f'clip {name}' for name in table.get('fname', range(len(table)))]
    groups = [''] * len(clips) if group_column is None else group_texts(table[group_column])
    # Union-find: each key points to a larger key of its set, and the largest one, the root, names the set.
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while key in parent:
            key = parent[key]
        return key

    for clip, group in zip(clips, groups, strict=True):
        if group:
            smaller, larger = sorted([root(clip), root(f'group {group}')])
            if smaller != larger:
                parent[smaller] = larger
    return np.array([root(clip) for clip in clips], dtype=object)


def group_texts(groups: Sequence[Any]) -> list[str]:
    '''Convert every group to text; missing and blank ones become empty.'''
    import pandas

    column = pandas.Series(list(groups), dtype=object)
    return [str(group).strip() for group in column.where(column.notna(), '')]


def stratify_groups(counts: np.ndarray, sizes: np.ndarray, n_folds: int, seed: int = 0) -> np.ndarray:
    '''Assign a fold to each group, so that every label and the clips are spread evenly.

    Iterative stratification takes the label with the fewest unassigned clips and assigns its groups, the largest
    first, each to the fold that lacks most clips of this label. Groups without labels come last.

    Shape:  counts (G, K) clips of each label in each group, sizes (G,) clips -> folds (G,) int64
    Source: Sechidis, Tsoumakas & Vlahavas 2011, algorithm 1, with groups in place of clips
    '''
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(sizes))
    tie_breaks = generator.random((len(sizes), n_folds))
    folds = np.full(len(sizes), -1, np.int64)
    unassigned = counts.sum(axis=0)
    # How many clips of each label, and of all clips, a fold still lacks. A fold's share is 1 / n_folds of the
    # total, a fraction; all numbers are kept n_folds times as large, so that they are exact integers.
    lacking = np.tile(unassigned, (n_folds, 1))
    lacking_clips = np.full(n_folds, sizes.sum())

    def assign(group: int, need: np.ndarray) -> None:
        # lexsort sorts by its last key first: most needed, then most room for clips, then the seed's choice.
        fold = np.lexsort((tie_breaks[group], lacking_clips, need))[-1]
        folds[group] = fold
        lacking[fold] -= n_folds * counts[group]
        lacking_clips[fold] -= n_folds * sizes[group]
        unassigned[:] -= counts[group]

    while unassigned.any():
        # The rarest label goes first: later on, no group would be left to correct its spread with.
        label = int(np.where(unassigned > 0, unassigned, np.iinfo(np.int64).max).argmin())
        candidates = shuffled[(folds[shuffled] < 0) & (counts[shuffled, label] > 0)]
        largest_first = np.argsort(-counts[candidates, label], kind='stable')
        for group in candidates[largest_first]:
            assign(group, lacking[:, label])
    unlabelled = shuffled[folds[shuffled] < 0]
    largest_first = np.argsort(-sizes[unlabelled], kind='stable')
    for group in unlabelled[largest_first]:
        assign(group, lacking_clips)
    return folds


def note_similar_classes(classes: Iterable[str]) -> None:
    '''Print a note of two classes that differ only in case, blanks or marks: one may be misspelt.'''
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(re.sub(r'[\W_]+', '', unicodedata.normalize('NFKC', name)).lower() or name, name)
        if other != name:
            print(f'note: {other!r} and {name!r} are two classes: correct the table if one is misspelt.', flush=True)


def check_no_leak(folds: Sequence[int] | np.ndarray, groups: Sequence[Any]) -> None:
    '''Raise KitError for a group that lies in more than one fold, if not empty.'''
    folds_of_group: dict[str, set[int]] = {}
    for fold, group in zip(folds, group_texts(groups), strict=True):
        if group:
            folds_of_group.setdefault(group, set()).add(int(fold))
    leaking = [group for group, its_folds in folds_of_group.items() if len(its_folds) > 1]
    if leaking:
        first, second, *_ = sorted(folds_of_group[leaking[0]])
        count = f'{len(leaking)} of {len(folds_of_group)} do so'
        raise KitError(f'group {leaking[0]!r} lies in fold {first} and in fold {second} ({count}): use group_column.')
