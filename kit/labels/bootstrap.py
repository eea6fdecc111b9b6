'''Bootstrap intervals: how a metric, or the difference of two, would vary with other clips of the same kind.'''

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.labels.folds import group_texts
from kit.labels.metrics import (
    METRICS,
    Statistic,
    class_metric,
    compute_metric,
    label_precisions,
    metric_statistic,
    ranking_masks,
    ratio_of_counts,
)

# For a metric over columns, labels to count in all draws, of which there are 100 to 1,000.
MAX_COUNTED = 5 * 10**8


@dataclass(frozen=True)
class Interval:
    '''A metric, and the bounds of 95 % of its bootstrap draws; `redrawn` had no value and were repeated.'''

    value: float
    low: float
    high: float
    redrawn: int = 0
    draws: int = 1000

    def __format__(self, number: str) -> str:
        few = f'; {self.draws} draws' if self.draws != 1000 else ''
        note = f'; {self.redrawn} draws without a value repeated' if self.redrawn else ''
        value, low, high = (format(x, number or '.4f') for x in (self.value, self.low, self.high))
        return f'{value} (95 %: {low} to {high}{few}{note})'

    def __str__(self) -> str:
        return format(self)


def bootstrap_interval(metric: str, truth: Any, scores: Any, groups: Sequence[Any] | None = None) -> Interval:
    '''Compute a metric by its name, and its bootstrap interval over clips.

    The clips of a group, as of a recording, are drawn together; a clip with an empty group is drawn alone. A draw on
    which the metric has no value is repeated.

    Shape:  truth (n, K), scores (n, K), groups (n,) -> Interval
    Source: percentile method, Efron & Tibshirani 1993, An Introduction to the Bootstrap
    Errors: KitError where the metric has no value on all clips, or on more than half of the draws
    '''
    value = compute_metric(metric, truth, scores)
    statistic = metric_statistic(metric, truth, scores)
    return percentile_interval(value, statistic, group_numbers(groups, len(truth)), draws_of(metric, truth))


def bootstrap_difference(
    metric: str, truth: Any, scores: Any, others: Any, groups: Sequence[Any] | None = None
) -> Interval:
    '''Compute by how much `scores` are better than `others`, with its interval.

    Both are evaluated on the same draws, so the difference varies less than either metric.

    Shape:  truth (n, K), scores and others (n, K), groups (n,) -> Interval
    '''
    value = compute_metric(metric, truth, scores) - compute_metric(metric, truth, others)
    statistic = metric_statistic(metric, truth, scores)
    other = metric_statistic(metric, truth, others)
    group = group_numbers(groups, len(truth))
    return percentile_interval(value, lambda n: statistic(n) - other(n), group, draws_of(metric, truth))


def draws_of(metric: str, truth: Any) -> int:
    '''1,000, or fewer where that takes long.'''
    return 1000 if METRICS[metric].clip_sums else min(1000, max(100, MAX_COUNTED // np.size(truth)))


def class_intervals(
    name: str, truth: Any, scores: Any, classes: Sequence[int], groups: Sequence[Any] | None = None
) -> list[Interval]:
    '''Compute the class_metric of some classes, with 95 % intervals.'''
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    precisions = label_precisions(true, known, scores)
    group = group_numbers(groups, len(true))
    intervals = []
    for k in classes:
        if class_metric(name) == 'lwlrap':
            value = float(precisions[true[:, k], k].mean())
            statistic = ratio_of_counts(precisions[:, k], true[:, k])
        else:
            value = compute_metric(name, truth[:, [k]], scores[:, [k]])
            statistic = metric_statistic(name, truth[:, [k]], scores[:, [k]])
        intervals.append(percentile_interval(value, statistic, group, 1000))
    return intervals


def format_metric(metric: Callable[..., Any], *arguments: Any) -> str:
    '''Compute a metric as text, with its interval if it has one; "-" without a value.'''
    try:
        return f'{metric(*arguments):.4f}'
    except KitError:
        return '-'


def percentile_interval(value: float, statistic: Statistic, group: np.ndarray, draws: int) -> Interval:
    '''Draw groups with replacement; find the middle 95 % of a statistic's values. Shape: group (n,) int64 from 0'''
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 2:
        raise KitError(f'{len(group)} clips in {n_groups} groups: resampling needs 2 or more.')
    generator = np.random.default_rng(0)
    values: list[float] = []
    redrawn = 0
    while len(values) < draws:
        drawn = generator.integers(n_groups, size=(50, n_groups))
        counts = np.stack([np.bincount(groups, minlength=n_groups) for groups in drawn], axis=1)
        for drawn_value in statistic(counts.astype(np.int32)[group]).tolist():
            if len(values) == draws:
                break
            if math.isfinite(drawn_value):
                values.append(drawn_value)
            else:
                redrawn += 1
            if redrawn > draws:
                share = f'{redrawn} of {redrawn + len(values)} draws of {n_groups} groups'
                raise KitError(f'the metric has no value in {share}: leave out rare classes.')
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Interval(value, low, high, redrawn, draws)


def group_numbers(groups: Sequence[Any] | None, n_rows: int) -> np.ndarray:
    '''Number the groups; a row without a group gets its own number. Shape: -> (n,) int64'''
    if groups is None or not len(groups):
        return np.arange(n_rows)
    if len(groups) != n_rows:
        raise KitError(f'{len(groups)} groups for {n_rows} clips: pass one group per row.')
    keys = [(text, 0) if text else ('', row) for row, text in enumerate(group_texts(groups))]
    # Numbers follow the sorted names: the draws do not depend on the order of the rows.
    number_of_key = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([number_of_key[key] for key in keys], np.int64)
