"""A clip table in, leak-free folds with even shares of every class out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError, closest
from kit.labels.table import class_names, label_targets


def make_folds(table: Any, n_folds: int = 5, seed: int = 0, group_column: str | None = None) -> np.ndarray:
    """A fold for every row of a clip table, with each class spread evenly and no group in two folds.

    Rows of one fname are one group; so are rows that share a text in `group_column` (recording,
    near-duplicate, uploader), where an empty cell means that the row stands alone. The answer
    depends on the rows and the seed, not on the order of the rows, as long as they have an fname.

    Shape:  n rows -> (n,) int64 in 0 .. n_folds - 1
    Source: Sechidis, Tsoumakas & Vlahavas 2011, On the Stratification of Multi-Label Data
    Errors: KitError for fewer than two folds, fewer groups than folds, a column that is not there.
    """
    if n_folds < 2:
        raise KitError(f"n_folds must be at least 2, got {n_folds}: one fold validates, the others train.")
    if not hasattr(table, "columns"):
        raise KitError(
            f"make_folds takes a table that was read, got {table!r}: make_folds(read_clip_table(path))."
        )
    for name in ("labels", group_column):
        if name is not None and name not in table.columns:
            raise KitError(f"the table has no column {name!r}: {closest(name, map(str, table.columns))}.")
    names, group_of_row = np.unique(group_keys(table, group_column), return_inverse=True)
    if len(names) < n_folds:
        raise KitError(
            f"{n_folds} folds need as many groups, the table has {len(names)} in {len(table)} rows: "
            "ask for fewer folds or group less."
        )
    labels = list(table["labels"])
    targets = label_targets(labels, class_names(labels))
    counts = np.zeros((len(names), targets.shape[1]), dtype=np.int64)
    np.add.at(counts, group_of_row, targets.astype(np.int64))
    sizes = np.bincount(group_of_row, minlength=len(names))
    return stratify_groups(counts, sizes, n_folds, seed)[group_of_row]


def group_keys(table: Any, group_column: str | None) -> np.ndarray:
    """A text per row, equal for rows that must share a fold."""
    alone = list(table["fname"]) if "fname" in table.columns else range(len(table))
    keys = [f"clip {name}" for name in alone]
    if group_column is not None:
        for i, group in enumerate(group_texts(table[group_column])):
            if group:
                keys[i] = f"group {group}"
    return np.array(keys, dtype=object)


def group_texts(groups: Sequence[Any]) -> list[str]:
    """Every group as text, empty where it is missing or blank."""
    import pandas

    column = pandas.Series(list(groups), dtype=object)
    texts = [str(group) for group in column]
    return [
        text if text.strip() and not is_missing else ""
        for text, is_missing in zip(texts, column.isna(), strict=True)
    ]


def stratify_groups(counts: np.ndarray, sizes: np.ndarray, n_folds: int, seed: int = 0) -> np.ndarray:
    """A fold per group: the rarest label's groups first, each to the fold that lacks that label most.

    Ties go to the fold with most room, then to the seed; groups without labels fill the room left.
    What a fold lacks is kept as n_folds times itself, so all of it is exact in integers.

    Shape:  counts (G, K) clips per label, sizes (G,) clips -> folds (G,) int64
    Source: Sechidis, Tsoumakas & Vlahavas 2011, algorithm 1, over groups instead of clips
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(sizes))
    draws = generator.random((len(sizes), n_folds))
    counts, sizes = np.asarray(counts, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    left = counts.sum(axis=0)
    lacking = np.tile(left, (n_folds, 1))
    room = np.full(n_folds, sizes.sum())
    folds = np.full(len(sizes), -1, dtype=np.int64)

    def place(group: int, wanted: np.ndarray) -> None:
        fold = max(range(n_folds), key=lambda f: (wanted[f], room[f], draws[group, f]))
        folds[group] = fold
        lacking[fold] -= n_folds * counts[group]
        room[fold] -= n_folds * sizes[group]
        left[:] -= counts[group]

    while left.any():
        label = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        members = shuffled[(folds[shuffled] < 0) & (counts[shuffled, label] > 0)]
        for group in members[np.argsort(-counts[members, label], kind="stable")]:
            place(group, lacking[:, label])
    unlabelled = shuffled[folds[shuffled] < 0]
    for group in unlabelled[np.argsort(-sizes[unlabelled], kind="stable")]:
        place(group, room)
    return folds


def check_no_leak(folds: Sequence[int] | np.ndarray, groups: Sequence[Any]) -> None:
    """Raise KitError naming a group that lies in more than one fold; an empty group is no group."""
    if len(folds) != len(groups):
        raise KitError(f"{len(folds)} folds for {len(groups)} rows: give one fold and one group per row.")
    first: dict[str, int] = {}
    crossing: dict[str, tuple[int, int]] = {}
    for fold, group in zip(folds, group_texts(groups), strict=True):
        if group and first.setdefault(group, int(fold)) != fold:
            crossing.setdefault(group, (first[group], int(fold)))
    if crossing:
        name, (one, other) = next(iter(crossing.items()))
        raise KitError(
            f"group {name!r} lies in fold {one} and in fold {other} ({len(crossing)} of {len(first)} groups "
            "cross folds): make the folds with group_column, or validation hears what training heard."
        )
