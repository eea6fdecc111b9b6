"""Plots of a table's labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.labels.table import clip_labels, rows_by_name
from kit.plots.figure import MOST_ROWS, Drawing, draw_matrix, new_rows


def draw_labels(table: Any, seconds: Sequence[float] | None = None) -> Drawing:
    """How many clips, and seconds of them, each class has, and the share of a class's clips that have another too.

    Stretches of one clip count once; unknown labels do not. Shown are the 40 most frequent classes.
    Shape: a table as read_clip_table reads it, seconds of each row's clip
    """
    labels = clip_labels(table)
    if not labels.classes or (seconds is not None and len(seconds) != len(table)):
        told = f"{len(labels.classes)} classes in {len(table)} rows"
        raise KitError(f"wanted labels, and as many seconds as rows, got {told}: give both of one table.")
    places = [*rows_by_name(labels.names).values()]
    targets = np.array([np.fmax.reduce(labels.targets[rows]) for rows in places])
    true, known = (targets == 1).astype(float), (~np.isnan(targets)).astype(float)
    measures = {"clips": true.sum(axis=0)}
    if seconds is not None:
        measures["seconds"] = np.array([seconds[rows[0]] for rows in places]) @ true
    shown = np.argsort(-measures["clips"], kind="stable")[:MOST_ROWS]
    names, widths = [labels.classes[k] for k in shown], [1] * len(measures)
    figure, (*bars, square) = new_rows(names, 11, len(widths) + 1, width_ratios=[*widths, 4])
    for axes, (unit, values) in zip(bars, measures.items(), strict=True):
        axes.barh(range(len(names)), values[shown])
        axes.set(xlabel=unit)
    with np.errstate(invalid="ignore"):
        shares = (true.T @ true) / (true.T @ known)
    np.fill_diagonal(shares, np.nan)
    draw_matrix(square, shares[np.ix_(shown, shown)], names)
    square.set(title="share of a row's clips that have the column's class too")
    figure.suptitle(f"{len(places):,} clips, {len(shown)} of {len(labels.classes)} classes")
    return Drawing(figure)
