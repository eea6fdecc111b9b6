"""Bootstrap intervals: how much a metric, or the difference of two, would vary with other clips of the same kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.labels.folds import group_texts
from kit.labels.metrics import clip_precision_sums, lwlrap, top1_accuracy, top1_clip_sums

Metric = Callable[[Any, Any], float]

# These metrics are ratios of sums over clips. A draw only weights the sums, which is faster than a new ranking.
CLIP_SUMS: dict[Metric, Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]] = {
    lwlrap: clip_precision_sums,
    top1_accuracy: top1_clip_sums,
}


@dataclass(frozen=True)
class Interval:
    """A metric on all clips, and the bounds that hold the share `level` of its bootstrap draws.

    `redrawn` counts the draws that were repeated because the metric had no value on them.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    redrawn: int = 0

    def __str__(self) -> str:
        note = f"; {self.redrawn} draws without a value repeated" if self.redrawn else ""
        return f"{self.value:.4f} ({self.level:.4g} within {self.low:.4f} to {self.high:.4f}{note})"


def bootstrap_interval(
    metric: Metric,
    truth: Any,
    scores: Any,
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compute `metric(truth, scores)` and its bootstrap interval over clips.

    All clips of a group (a recording, for example) are drawn together; a clip with an empty group is drawn alone.
    A draw on which the metric has no value is repeated.

    Shape:  truth (n, K), scores (n, K), groups (n,) -> Interval
    Source: percentile method, Efron & Tibshirani 1993, An Introduction to the Bootstrap
    Errors: KitError where the metric is no finite number, or has no value on more than `draws` draws
    """
    value, statistic = metric_of_counts(metric, truth, scores)
    return percentile_interval(value, statistic, group_numbers(groups, len(truth)), draws, level, seed)


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
    """Compute by how much `scores` are better than `others`, with its interval.

    Both are evaluated on the same draws, so the difference varies less than either metric.

    Shape:  truth (n, K), scores and others (n, K), groups (n,) -> Interval
    """
    value, statistic = metric_of_counts(metric, truth, scores)
    other_value, other_statistic = metric_of_counts(metric, truth, others)

    def difference(counts: np.ndarray) -> float:
        return statistic(counts) - other_statistic(counts)

    group = group_numbers(groups, len(truth))
    return percentile_interval(value - other_value, difference, group, draws, level, seed)


def metric_of_counts(metric: Metric, truth: Any, scores: Any) -> tuple[float, Callable[[np.ndarray], float]]:
    """Return a metric on all clips, and the function that computes it from how often a draw holds each clip.

    Errors: KitError unless the metric on all clips is one finite number
    """
    value = metric(truth, scores)
    if np.ndim(value) or not np.isfinite(value):
        raise KitError(f"the metric gave {value!r}, wanted one number.")
    if metric in CLIP_SUMS:
        return float(value), ratio_of_counts(*CLIP_SUMS[metric](truth, scores))
    truth = np.asarray(truth)
    scores = np.asarray(scores)

    def computed(counts: np.ndarray) -> float:
        rows = np.repeat(np.arange(len(counts)), counts)
        try:
            return float(metric(truth[rows], scores[rows]))
        except KitError:
            return np.nan

    return float(value), computed


def ratio_of_counts(numerators: np.ndarray, denominators: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the function that maps the counts of the clips to a ratio of sums, NaN where there is none."""

    def ratio(counts: np.ndarray) -> float:
        denominator = counts @ denominators
        return float(counts @ numerators / denominator) if denominator else np.nan

    return ratio


def percentile_interval(
    value: float,
    statistic: Callable[[np.ndarray], float],
    group: np.ndarray,
    draws: int,
    level: float,
    seed: int,
) -> Interval:
    """Draw groups with replacement; return the bounds of the middle share `level` of a statistic's values.

    Shape:  group (n,) int64 from 0; statistic maps counts (n,) of the rows in a draw to a number
    """
    # Fewer draws would leave less than one draw beyond each bound.
    if not 0 < level < 1 or draws * (1 - level) < 2 - 1e-9:
        raise KitError(f"{draws} draws at level {level:g}: at least 2 / (1 - level) draws are needed.")
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        raise KitError(f"{len(group)} clips in {n_groups} groups: resampling needs 2 or more.")
    generator = np.random.default_rng(seed)
    values: list[float] = []
    redrawn = 0
    while len(values) < draws:
        drawn = generator.integers(n_groups, size=n_groups)
        counts = np.bincount(drawn, minlength=n_groups)
        drawn_value = statistic(counts[group])
        if np.isfinite(drawn_value):
            values.append(drawn_value)
        else:
            redrawn += 1
        if redrawn > draws:
            share = f"{redrawn} of {redrawn + len(values)} draws of {n_groups} groups"
            raise KitError(f"the metric has no value in {share}: leave out rare classes.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(value, low, high, level, redrawn)


def group_numbers(groups: Sequence[Any] | None, n_rows: int) -> np.ndarray:
    """Number the groups; a row without a group gets its own number. Shape: -> (n,) int64"""
    if groups is None:
        return np.arange(n_rows)
    if len(groups) != n_rows:
        raise KitError(f"{len(groups)} groups for {n_rows} clips: pass one group per row.")
    keys = [(text, 0) if text else ("", row) for row, text in enumerate(group_texts(groups))]
    # Numbers follow the sorted names, so that the draws do not depend on the order of the rows.
    number_of_key = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([number_of_key[key] for key in keys], np.int64)
