"""A clip table in, leak-free folds with even shares of every class out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.labels.table import class_names, label_targets


def make_folds(table: Any, n_folds: int = 5, seed: int = 0, group_column: str | None = None) -> np.ndarray:
    """A fold for every row of a clip table, with each class spread evenly and no group in two folds.

    Rows of one fname are one group; so are rows that share a text in `group_column` that is not empty.

    Shape:  n rows -> (n,) int64 in 0 .. n_folds - 1
    Source: Sechidis, Tsoumakas & Vlahavas 2011, On the Stratification of Multi-Label Data
    """
    if n_folds < 2:
        raise KitError(f"n_folds must be at least 2, got {n_folds}.")
    if not hasattr(table, "columns"):
        raise KitError(f"no table but {type(table).__name__}: make_folds(read_clip_table(path)).")
    for name in ("labels", group_column or "labels"):
        choose("column", name, table)
    names, group_of_row = np.unique(group_keys(table, group_column), return_inverse=True)
    if len(names) < n_folds:
        raise KitError(f"{n_folds} folds need as many groups, not {len(names)} in {len(table)} rows.")
    labels = list(table["labels"])
    targets = label_targets(labels, class_names(labels))
    counts = np.zeros((len(names), targets.shape[1]), np.int64)
    np.add.at(counts, group_of_row, targets.astype(np.int64))
    sizes = np.bincount(group_of_row, minlength=len(names))
    return stratify_groups(counts, sizes, n_folds, seed)[group_of_row]


def group_keys(table: Any, group_column: str | None) -> np.ndarray:
    """A text per row, equal for rows that clips and groups link, however far."""
    clips = [f"clip {name}" for name in table.get("fname", range(len(table)))]
    groups = [""] * len(clips) if group_column is None else group_texts(table[group_column])
    above: dict[str, str] = {}

    def root(key: str) -> str:
        while key in above:
            key = above[key]
        return key

    for clip, group in zip(clips, groups, strict=True):
        low, high = sorted((root(clip), root(f"group {group}" if group else clip)))
        if low != high:
            above[low] = high
    return np.array([root(clip) for clip in clips], dtype=object)


def group_texts(groups: Sequence[Any]) -> list[str]:
    """Every group as text, empty where it is missing or blank."""
    import pandas

    missing = pandas.Series(list(groups), dtype=object).isna()
    texts = ("" if gone else str(group) for group, gone in zip(groups, missing, strict=True))
    return [text if text.strip() else "" for text in texts]


def stratify_groups(counts: np.ndarray, sizes: np.ndarray, n_folds: int, seed: int = 0) -> np.ndarray:
    """A fold per group: the rarest label's groups first, each to the fold that lacks that label most.

    Ties go to the fold with most room, then to the seed; groups without labels fill the room left.
    What a fold lacks is kept n_folds times, so that it is exact in integers.

    Shape:  counts (G, K) clips per label, sizes (G,) clips -> folds (G,) int64
    Source: Sechidis, Tsoumakas & Vlahavas 2011, algorithm 1, over groups instead of clips
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(sizes))
    draws = generator.random((len(sizes), n_folds))
    left, room = counts.sum(axis=0), np.full(n_folds, sizes.sum())
    lacking, folds = np.tile(left, (n_folds, 1)), np.full(len(sizes), -1, np.int64)

    def place(group: int, wanted: np.ndarray) -> None:
        fold = np.lexsort((draws[group], room, wanted))[-1]
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
        raise KitError(f"{len(folds)} folds for {len(groups)} rows: give one per row.")
    homes: dict[str, set[int]] = {}
    for fold, group in zip(folds, group_texts(groups), strict=True):
        if group:
            homes.setdefault(group, set()).add(int(fold))
    if crossing := [group for group, found in homes.items() if len(found) > 1]:
        one, other, *_ = sorted(homes[crossing[0]])
        told = f"lies in fold {one} and in fold {other} ({len(crossing)} of {len(homes)} do so)"
        raise KitError(f"group {crossing[0]!r} {told}: use group_column.")
