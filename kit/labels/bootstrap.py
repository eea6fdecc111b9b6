"""A metric, truth and scores in, the metric's value and how sure it is, by resampling clips, out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.labels.folds import group_texts
from kit.labels.metrics import clip_precision_sums, lwlrap, top1_accuracy, top1_clip_sums

Metric = Callable[[Any, Any], float]

# Metrics that are a ratio of sums over clips, which a resample only weighs anew.
CLIP_SUMS: dict[Metric, Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]] = {
    lwlrap: clip_precision_sums,
    top1_accuracy: top1_clip_sums,
}


@dataclass(frozen=True)
class Interval:
    """A value on all clips, and the bounds that hold `level` of its resamples."""

    value: float
    low: float
    high: float
    level: float = 0.95
    redrawn: int = 0

    def __str__(self) -> str:
        anew = f"; {self.redrawn} draws without a value made anew" if self.redrawn else ""
        return f"{self.value:.4f} ({self.level:.4g} within {self.low:.4f} to {self.high:.4f}{anew})"


def bootstrap_interval(
    metric: Metric,
    truth: Any,
    scores: Any,
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How far `metric(truth, scores)` would move with other clips of the same kind.

    Groups (recordings, say) are drawn whole; a row whose group is empty stands alone. A draw where the metric has
    no value is made anew.

    Shape:  truth (n, K), scores (n, K), groups (n,) -> Interval
    Source: percentile method, Efron & Tibshirani 1993, An Introduction to the Bootstrap
    """
    value, of_draw = resampled(metric, truth, scores)
    return percentile_interval(value, of_draw, group_numbers(groups, len(truth)), draws, level, seed)


def bootstrap_difference(
    metric: Metric,
    truth: Any,
    scores: Any,
    others: Any,
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How much better `scores` are than `others` on the same clips, both scored on the same draws.

    Shape, Source: as bootstrap_interval
    """
    (value, one), (less, other) = (resampled(metric, truth, given) for given in (scores, others))
    group = group_numbers(groups, len(truth))
    return percentile_interval(value - less, lambda n: one(n) - other(n), group, draws, level, seed)


def resampled(metric: Metric, truth: Any, scores: Any) -> tuple[float, Callable[[np.ndarray], float]]:
    """The metric, and what makes it of each clip's count in a draw, (n,)."""
    value = metric(truth, scores)
    if np.ndim(value) or not np.isfinite(value):
        raise KitError(f"the metric gave {value!r}, wanted one number.")
    sums = CLIP_SUMS[metric](truth, scores) if metric in CLIP_SUMS else None
    truth, scores = np.asarray(truth), np.asarray(scores)

    def of_draw(counts: np.ndarray) -> float:
        if sums:
            gained, possible = (counts @ part for part in sums)
            return float(gained / possible) if possible else np.nan
        rows = np.repeat(np.arange(len(counts)), counts)
        try:
            return float(metric(truth[rows], scores[rows]))
        except KitError:
            return np.nan

    return float(value), of_draw


def percentile_interval(
    value: float,
    statistic: Callable[[np.ndarray], float],
    group: np.ndarray,
    draws: int,
    level: float,
    seed: int,
) -> Interval:
    """The bounds of the middle `level` of `draws` values of a statistic of the rows' counts."""
    if not 0 < level < 1 or draws * (1 - level) < 2 - 1e-9:
        raise KitError(f"{draws} draws at level {level:g}: 2 / (1 - level) or more are wanted.")
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        raise KitError(f"{len(group)} clips in {n_groups} groups: resampling wants 2 or more.")
    generator, values, redrawn = np.random.default_rng(seed), list[float](), 0
    while len(values) < draws:
        drawn = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
        if np.isfinite(found := statistic(drawn[group])):
            values.append(found)
        else:
            redrawn += 1
        if redrawn > draws:
            told = f"{redrawn} of {redrawn + len(values)} draws of {n_groups} groups"
            raise KitError(f"the metric has no value in {told}: leave out rare classes.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(value, low, high, level, redrawn)


def group_numbers(groups: Sequence[Any] | None, n_rows: int) -> np.ndarray:
    """A number per row, the same for rows drawn together. Shape: n texts or None -> (n,) int64"""
    if groups is None:
        return np.arange(n_rows)
    if len(groups) != n_rows:
        raise KitError(f"{len(groups)} groups for {n_rows} clips: give one group per row.")
    keys = [(text, 0) if text else ("", i) for i, text in enumerate(group_texts(groups))]
    number = {key: i for i, key in enumerate(sorted({*keys}))}
    return np.array([number[key] for key in keys], np.int64)
