"""Plots of a clip table's labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.labels.table import clip_labels, rows_by_name
from kit.plots.figure import MAX_ROWS, Plot, draw_matrix, new_row_figure, shown_name


def draw_labels(table: Any, seconds: Sequence[float] | None = None) -> Plot:
    """Labels: the number of clips and seconds of each class, and how often two classes occur together.

    The 40 most frequent classes are shown. Rows of one clip count as one clip. Unknown labels do not count.

    Shape:  a table as `read_clip_table` reads it, with n rows; seconds (n,), the length of each row's clip
    Errors: KitError for a table without labels, or another number of seconds
    """
    labels = clip_labels(table)
    if not labels.classes:
        raise KitError(f"0 classes in {len(table)} rows: pass a table with labels.")
    if seconds is not None and len(seconds) != len(table):
        raise KitError(f"wanted as many seconds as rows, got {len(seconds)} for {len(table)} rows.")
    clip_rows = list(rows_by_name(labels.names).values())
    targets = np.array([np.fmax.reduce(labels.targets[rows]) for rows in clip_rows])
    is_true = (targets == 1).astype(float)
    is_known = (~np.isnan(targets)).astype(float)

    measures = {"clips": is_true.sum(axis=0)}
    if seconds is not None:
        measures["seconds"] = np.array([seconds[rows[0]] for rows in clip_rows]) @ is_true
    shown = np.argsort(-measures["clips"], kind="stable")[:MAX_ROWS]
    with np.errstate(invalid="ignore"):  # 0 / 0: no clip of the row's class knows the column's
        shares = (is_true.T @ is_true) / (is_true.T @ is_known)
    np.fill_diagonal(shares, np.nan)

    names = [shown_name(labels.classes[k]) for k in shown]
    widths = [1] * len(measures) + [4]
    figure, (*bar_panels, matrix_panel) = new_row_figure(names, 11, len(widths), width_ratios=widths)
    for axes, (unit, values) in zip(bar_panels, measures.items(), strict=True):
        axes.barh(range(len(names)), values[shown])
        axes.set(xlabel=unit)
    draw_matrix(matrix_panel, shares[np.ix_(shown, shown)], names)
    matrix_panel.set(title="share of the row's clips that also have the column's class")
    figure.suptitle(f"{len(clip_rows):,} clips, {len(shown)} of {len(labels.classes)} classes")
    return Plot(figure)
