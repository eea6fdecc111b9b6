'''Metrics: those that a recipe may choose, their values per class, and log losses.

Truth is 1 (true), 0 (false) or NaN (unknown). Every metric masks the unknown labels.
'''

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from kit.core.errors import KitError, choose

RANKING_CHUNK = 1 << 19
COUNTING_CHUNK = 1 << 21

# Maps how often each of D draws holds each clip to the draws' values. Shape: counts (n, D) -> (D,), NaN without a value
Statistic = Callable[[np.ndarray], np.ndarray]
# Two numbers per clip. Shape: two of (n,)
ClipSums = tuple[np.ndarray, np.ndarray]


def lwlrap(truth: Any, scores: Any) -> float:
    '''Compute label-weighted label-ranking average precision, in which every true label has the same weight.

    A true label's precision is the share of true labels among the labels of its clip that score at least as high.
    lwlrap is the mean precision of all true labels of the set.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number in (0, 1]
    Source: Fonseca et al. 2019, arXiv:1906.02975; ties as in scikit-learn
    '''
    return compute_metric('lwlrap', truth, scores)


def label_precisions(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    '''Divide, for each true label, the true labels with at least its score by the known ones; 0 for the others.

    Shape:  three of (n, K) -> (n, K)
    '''
    n_rows, n_labels = true.shape
    precisions = np.empty(true.shape)
    # Chunks of rows bound the memory of the sorted copies.
    chunk = max(1, RANKING_CHUNK // max(1, n_labels))
    for start in range(0, n_rows, chunk):
        rows = slice(start, start + chunk)
        order = np.argsort(scores[rows], axis=1)
        sorted_scores = np.take_along_axis(scores[rows], order, axis=1)
        # Labels with equal scores have equal precision. All labels from the first of a tie upwards have at least its
        # score, so the tie takes the counts at its first position.
        tie_start = np.broadcast_to(np.arange(n_labels), sorted_scores.shape).copy()
        tie_start[:, 1:][sorted_scores[:, 1:] == sorted_scores[:, :-1]] = 0
        tie_start = np.maximum.accumulate(tie_start, axis=1)
        n_true = count_upwards(np.take_along_axis(true[rows], order, axis=1))
        n_known = count_upwards(np.take_along_axis(known[rows], order, axis=1))
        share = np.take_along_axis(n_true / np.maximum(n_known, 1), tie_start, axis=1)
        np.put_along_axis(precisions[rows], order, share, axis=1)
    return np.where(true, precisions, 0.0)


def count_upwards(mask: np.ndarray) -> np.ndarray:
    '''Count the True values from each column to the last one. Shape: (n, K) bool -> (n, K)'''
    return mask[:, ::-1].cumsum(axis=1)[:, ::-1]


def precision_clip_sums(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> ClipSums:
    '''Compute, per clip, the sum of its true labels' precisions and their number.'''
    return label_precisions(true, known, scores).sum(axis=1), true.sum(axis=1)


def top1_clip_sums(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> ClipSums:
    '''Compute, per clip, the share of true ones among its classes of highest score, and if it has a true label.'''
    highest = np.where(known, scores, -np.inf).max(axis=1, keepdims=True)
    at_top = known & (scores == highest)
    return (at_top & true).sum(axis=1) / np.maximum(at_top.sum(axis=1), 1), np.asarray(true.any(axis=1))


def map3_clip_sums(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> ClipSums:
    '''Compute, per clip, its average precision at 3, ties counting against it, and if it has a true label.'''
    precisions = label_precisions(true, known, scores)
    known_scores = np.where(known, scores, -np.inf)
    fourth = np.sort(np.pad(known_scores, ((0, 0), (3, 0)), constant_values=-np.inf))[:, -4:-3]
    precisions[known_scores <= fourth] = 0
    return precisions.sum(axis=1) / true.sum(axis=1).clip(1, 3), np.asarray(true.any(axis=1))


def f1_clip_sums(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> ClipSums:
    '''Compute, per clip, the F1 of its labels from 0.5 up, 1 if none is true, and if it has a known label.'''
    check_probabilities(scores)
    counts = known.any(axis=1)
    return f1_scores(true, known & (scores >= 0.5), axis=1) * counts, np.asarray(counts)


def f1_scores(true: np.ndarray, predicted: np.ndarray, axis: int) -> np.ndarray:
    '''Compute the F1 of decisions along an axis, 1 where nothing is true or predicted. Shape: two of (n, K)'''
    n_labels = true.sum(axis) + predicted.sum(axis)
    return np.where(n_labels > 0, 2 * (true & predicted).sum(axis) / n_labels.clip(1), 1.0)


class SortedLabels(NamedTuple):
    '''Labels that are ranked together, by falling score; true ones share a part with all labels of their score alone.

    Shape:  rows (L,), places of the true labels (p,), cuts between parts (c,)
    '''

    rows: np.ndarray
    places: np.ndarray
    cuts: np.ndarray


def sort_labels(rows: np.ndarray, true: np.ndarray, scores: np.ndarray) -> SortedLabels:
    '''Sort a list of labels. Shape: three of (L,)'''
    order = np.argsort(-scores, kind='stable')
    rising = -scores[order]
    places = np.flatnonzero(true[order])
    bounds = [np.searchsorted(rising, rising[places], side) for side in ('left', 'right')]
    cuts = np.union1d(0, bounds)
    return SortedLabels(rows[order], places, cuts[cuts < len(rows)])


def count_labels(labels: SortedLabels, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    '''Count the true and the false labels before each cut, and all. Shape: counts (n, D) -> two of (c + 1, D)'''
    of_labels = np.take(counts, labels.rows, axis=0)
    totals = np.zeros((2, len(labels.cuts) + 1, counts.shape[1]))
    true, known = totals[:, 1:]
    np.add.at(true, np.searchsorted(labels.cuts, labels.places, 'right') - 1, of_labels[labels.places])
    # The sums of the parts are ten times as fast as running totals over all labels.
    np.add.reduceat(of_labels, labels.cuts, axis=0, out=known)
    true, known = totals.cumsum(axis=1)
    return true, known - true


# scikit-learn gives the same values, but masks no unknown labels and takes one bootstrap draw at a time. So value and
# draws have one definition here, which tests compare with scikit-learn's.
def auc_of_counts(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    '''Compute the area under the ROC curve, by trapezoids. Shape: two of (c + 1, D) -> (D,)'''
    return (np.diff(false, axis=0) * (true[1:] + true[:-1]) / 2).sum(axis=0) / (true[-1] * false[-1])


def precision_of_counts(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    '''Compute the average precision.'''
    precision = true[1:] / (true + false)[1:].clip(1)
    return (np.diff(true, axis=0) * precision).sum(axis=0) / true[-1]


def f1_of_counts(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    '''Compute the F1 of decisions, with one more true label that ends the first part even where none is predicted.'''
    f1 = 2 * (true[1] - 1) / (true[-1] + true[1] + false[1] - 2).clip(1)
    return np.where(true[-1] > 1, f1, np.nan)


@dataclass(frozen=True)
class Metric:
    '''A metric that a recipe may choose; higher is better.

    Over rows, it is the ratio of the totals of two numbers per clip, `clip_sums`. Over columns, it is the mean of
    `of_counts` over the classes that have a value, each with `padding` more true labels of score 1; if `pooled`, that
    of one list of all labels. With `decides`, a score counts as 1 from 0.5 up, else as 0.
    '''

    clip_sums: Callable[[np.ndarray, np.ndarray, np.ndarray], ClipSums] | None = None
    of_counts: Callable[[np.ndarray, np.ndarray], np.ndarray] = precision_of_counts
    pooled: bool = False
    padding: int = 0
    decides: bool = False
    needs_true: bool = True

    @property
    def is_per_class(self) -> bool:
        '''Whether only the order of the clips within each class counts.'''
        return self.clip_sums is None and not self.pooled and not self.decides


# Freesound: map3 2018, lwlrap 2019. RFCX: lwlrap; its 32nd place validated lwlrap_flat, the micro average precision.
# BirdCLEF: micro_f1 (row-wise) 2021, macro_f1 like 2022, padded_cmap 2023, macro_auc from 2024 on. F1 is at 0.5: `oof`
# fits thresholds.
METRICS = {
    'lwlrap': Metric(precision_clip_sums),
    'lwlrap_flat': Metric(pooled=True),
    'macro_auc': Metric(of_counts=auc_of_counts),
    'macro_ap': Metric(),
    'padded_cmap': Metric(padding=5),
    'macro_f1': Metric(of_counts=f1_of_counts, padding=1, decides=True),
    'micro_f1': Metric(f1_clip_sums, needs_true=False),
    'map3': Metric(map3_clip_sums),
    'top1': Metric(top1_clip_sums),
}


def compute_metric(name: str, truth: Any, scores: Any) -> float:
    '''Compute the metric of a name. Shape: truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number

    Errors: KitError for an unknown name or a metric without a value
    '''
    value = float(metric_statistic(name, truth, scores)(np.ones((len(truth), 1), np.int32))[0])
    if np.isnan(value):
        raise KitError(f'{name} has no value on {len(truth)} clips: it needs known labels, both true and false.')
    return value


def class_metric(name: str) -> str:
    '''Name the metric of single classes: lwlrap for a metric over rows.'''
    return 'lwlrap' if METRICS[name].clip_sums else name


def metric_per_class(name: str, truth: Any, scores: Any) -> np.ndarray:
    '''Compute the class_metric of each class, NaN without a value or a true label. Shape: two of (n, K) -> (K,)'''
    metric = choose('metric', name, METRICS)
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    n_true = true.sum(axis=0)
    values = label_precisions(true, known, scores).sum(axis=0)[:, None] / n_true.clip(1)[:, None]
    if not metric.clip_sums:
        lists = label_lists(replace(metric, pooled=False), true, known, scores)
        values = values_of_lists(metric, lists, np.ones((len(true), 1), np.int32))
    return np.where(n_true > 0, values[:, 0], np.nan)


def metric_statistic(name: str, truth: Any, scores: Any) -> Statistic:
    '''The function that computes a metric from how often draws hold each clip.'''
    metric = choose('metric', name, METRICS)
    masks = ranking_masks(truth, scores, metric.needs_true)
    if metric.clip_sums:
        return ratio_of_counts(*metric.clip_sums(*masks))
    lists = label_lists(metric, *masks)
    longest = max(len(labels.rows) for labels in lists)

    def mean(counts: np.ndarray) -> np.ndarray:
        means = []
        # A few draws at a time bound the memory.
        for part in np.array_split(counts, -(-longest * counts.shape[1] // COUNTING_CHUNK), axis=1):
            values = values_of_lists(metric, lists, part)
            has_value = np.isfinite(values)
            means.append(divide(np.where(has_value, values, 0).sum(axis=0), has_value.sum(axis=0)))
        return np.concatenate(means)

    return mean


def ratio_of_counts(numerators: np.ndarray, denominators: np.ndarray) -> Statistic:
    '''The function that computes a ratio of two sums over clips. Shape: two of (n,)'''
    return lambda counts: divide(numerators @ counts, denominators @ counts)


def divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    '''Divide, with NaN where both are 0.'''
    with np.errstate(invalid='ignore'):
        return numerators / denominators


def label_lists(metric: Metric, true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> list[SortedLabels]:
    '''Sort the known labels of each class, or all; padding is in row n.'''
    scores = scores.astype(np.float64)
    if metric.pooled:
        return [sort_labels(np.nonzero(known)[0], true[known], scores[known])]
    if metric.padding:
        check_probabilities(scores)
    if metric.decides:
        scores = (scores >= 0.5).astype(np.float64)
    lists = []
    padding = np.full((3, metric.padding), [[len(true)], [1], [1]])
    for k in range(true.shape[1]):
        rows = np.flatnonzero(known[:, k])
        rows, labels, of_class = np.hstack([[rows, true[rows, k], scores[rows, k]], padding])
        lists.append(sort_labels(rows.astype(int), labels > 0, of_class))
    return lists


def values_of_lists(metric: Metric, lists: Sequence[SortedLabels], counts: np.ndarray) -> np.ndarray:
    '''Compute a metric over columns on each list, NaN where it has no value. Shape: counts (n, D) -> (lists, D)'''
    padded = np.vstack([counts, np.ones_like(counts[:1])]).astype(np.float32)
    with np.errstate(invalid='ignore'):
        return np.stack([metric.of_counts(*count_labels(labels, padded)) for labels in lists])


def label_likelihoods(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    '''Compute the probability of each label, in [1e-7, 1 - 1e-7]: a certain mistake costs a finite loss.

    Shape:  truth (n, K) of 1, 0 or NaN, probs (n, K) -> (n, K), 1 where unknown
    '''
    clipped = probs.astype(np.float64).clip(1e-7, 1 - 1e-7)
    return np.where(np.isnan(truth), 1.0, np.where(truth == 1, clipped, 1 - clipped))


def log_losses(truth: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    '''Compute the mean log losses of the true labels and of the false labels, NaN where there are none.

    Shape:  truth (n, K) of 1, 0 or NaN, probs (n, K)
    Source: second place, RFCX Species Audio Detection (its check of pseudo-labels)
    '''
    losses = -np.log(label_likelihoods(truth, probs))
    of_true, of_false = (divide(losses[truth == label].sum(), (truth == label).sum()) for label in (1, 0))
    return float(of_true), float(of_false)


def ranking_masks(truth: Any, scores: Any, some_true: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    '''Check truth and scores; return the masks of true and of known labels, and the scores.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) without NaN -> three of (n, K)
    '''
    truth = np.asarray(truth, np.float64)
    scores = np.asarray(scores)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise KitError(f'truth {truth.shape} and scores {scores.shape} must both be (clips, classes).')
    true = truth == 1
    known = ~np.isnan(truth)
    soft = known & ~true & (truth != 0)
    if soft.any():
        raise KitError(f'truth is {truth[soft][0]:g} at {describe_first(soft)}, wanted 1, 0 or NaN.')
    missing = np.isnan(scores)
    if missing.any():
        raise KitError(f'the score at {describe_first(missing)} is NaN: leave such rows out.')
    if some_true and not true.any():
        raise KitError(f'none of the {len(true)} clips has a true label: the metric needs one or more.')
    return true, known, scores


def check_probabilities(values: np.ndarray) -> None:
    '''Raise KitError at the first value outside [0, 1].'''
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise KitError(f'the probability is {values[bad][0]:g} at {describe_first(bad)}, wanted 0 to 1.')


def describe_first(mask: np.ndarray) -> str:
    '''Name the position of a mask's first True value.'''
    row, column = np.argwhere(mask)[0]
    return f'row {row}, column {column}'
