"""Metrics: lwlrap, AUC and average precision per class, log losses and top-1 accuracy.

Truth is 1 (true), 0 (false) or NaN (unknown). Every metric masks the unknown labels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from kit.core.errors import KitError

RANKING_CHUNK = 1 << 19
LOG_LOSS_FLOOR = 1e-7


def lwlrap(truth: Any, scores: Any) -> float:
    """Compute label-weighted label-ranking average precision, in which every true label has the same weight.

    The precision of a true label is the share of true labels among the labels of its clip that score at
    least as high as it does. lwlrap is the mean of these precisions over all true labels of the set.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number in (0, 1]
    Source: Fonseca et al. 2019, arXiv:1906.02975; ties as in scikit-learn
    """
    precisions, true = true_precisions(truth, scores)
    return float(precisions.sum(axis=0).sum() / true.sum())


def lwlrap_per_class(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute each class's mean precision and its share of the true labels, 0 and 0 for a class without one.

    Their dot product is lwlrap.
    Shape:  truth (n, K), scores (n, K) -> precision (K,), weight (K,)
    """
    precisions, true = true_precisions(truth, scores)
    n_true = true.sum(axis=0)
    return precisions.sum(axis=0) / np.maximum(n_true, 1), n_true / n_true.sum()


def clip_precision_sums(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute, per clip, the sum of its true labels' precisions and their number; lwlrap is the ratio of totals.

    Shape:  truth (n, K), scores (n, K) -> (n,), (n,)
    """
    precisions, true = true_precisions(truth, scores)
    return precisions.sum(axis=1), true.sum(axis=1)


def true_precisions(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute each true label's precision, as lwlrap defines it, 0 elsewhere, and the mask of true labels.

    Shape:  truth (n, K), scores (n, K) -> two of (n, K)
    """
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    return label_precisions(true, known, scores), true


def label_precisions(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Divide, for each true label, the true labels with at least its score by the known ones. Shape: -> (n, K)"""
    n_rows, n_labels = true.shape
    precisions = np.empty(true.shape)
    # Chunks of rows bound the memory of the sorted copies.
    chunk = max(1, RANKING_CHUNK // max(1, n_labels))
    for start in range(0, n_rows, chunk):
        rows = slice(start, start + chunk)
        order = np.argsort(scores[rows], axis=1)
        sorted_scores = np.take_along_axis(scores[rows], order, axis=1)
        # Labels with equal scores have equal precision. All labels from the first of a tie upwards have
        # at least its score, so the tie takes the counts found at its first position.
        tie_start = np.broadcast_to(np.arange(n_labels), sorted_scores.shape).copy()
        tie_start[:, 1:][sorted_scores[:, 1:] == sorted_scores[:, :-1]] = 0
        tie_start = np.maximum.accumulate(tie_start, axis=1)
        n_true = count_upwards(np.take_along_axis(true[rows], order, axis=1))
        n_known = count_upwards(np.take_along_axis(known[rows], order, axis=1))
        share = np.take_along_axis(n_true / np.maximum(n_known, 1), tie_start, axis=1)
        np.put_along_axis(precisions[rows], order, share, axis=1)
    return np.where(true, precisions, 0.0)


def count_upwards(mask: np.ndarray) -> np.ndarray:
    """Count the True values from each column to the last one. Shape: (n, K) bool -> (n, K)"""
    return np.asarray(mask[:, ::-1].cumsum(axis=1)[:, ::-1])


def auc_per_class(truth: Any, scores: Any) -> np.ndarray:
    """Compute the area under each class's ROC curve: how probably a true clip scores above a false one.

    It is NaN for a class whose known labels are all true or all false. np.nanmean of the result is the macro AUC.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K,) in [0, 1] or NaN
    """
    from sklearn.metrics import roc_auc_score

    return score_classes(roc_auc_score, truth, scores, some_false=True)


def average_precision_per_class(truth: Any, scores: Any) -> np.ndarray:
    """Compute each class's average precision, NaN for a class without a true label.

    np.nanmean of the result is the macro average (cmAP).

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K,) in (0, 1] or NaN
    """
    from sklearn.metrics import average_precision_score

    return score_classes(average_precision_score, truth, scores)


def score_classes(
    metric: Callable[[Any, Any], float], truth: Any, scores: Any, some_false: bool = False
) -> np.ndarray:
    """Compute a metric on each class's known labels, NaN without a true one or, if `some_false`, a false one."""
    true, known, scores = ranking_masks(truth, scores)
    scores = finite_scores(scores)
    values = np.full(true.shape[1], np.nan)
    for k in range(true.shape[1]):
        rows = known[:, k]
        labels = true[rows, k]
        if labels.any() and not (some_false and labels.all()):
            values[k] = metric(labels, scores[rows, k])
    return values


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """Convert to float64 with infinities clipped, which scikit-learn rejects; the ranks stay."""
    return scores.astype(np.float64).clip(-1e300, 1e300)


def log_losses(truth: Any, probabilities: Any) -> tuple[float, float]:
    """Compute the mean log loss of the true labels and that of the false labels, NaN where there are none.

    A soft label t counts as true with weight t and as false with weight 1 - t. Probabilities are clipped
    to [1e-7, 1 - 1e-7], so that one certain mistake costs a finite loss.

    Shape:  truth (n, K) in [0, 1] or NaN, probabilities (n, K) -> (of true labels, of false labels)
    Source: second place, RFCX Species Audio Detection (its check of pseudo-labels)
    """
    truth, probabilities = check_aligned(truth, probabilities)
    known = ~np.isnan(truth)
    check_unit_range("truth", truth, ~known)
    check_unit_range("the probability", probabilities)
    if not known.any():
        raise KitError(f"none of the labels of {len(truth)} clips is known: the log loss needs one or more.")
    labels = truth[known]
    probs = probabilities[known].astype(np.float64).clip(LOG_LOSS_FLOOR, 1 - LOG_LOSS_FLOOR)
    return weighted_mean(-np.log(probs), labels), weighted_mean(-np.log1p(-probs), 1 - labels)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Compute the weighted mean, NaN where all weights are 0."""
    return float(np.average(values, weights=weights)) if weights.any() else float("nan")


def top1_accuracy(truth: Any, scores: Any) -> float:
    """Compute the share of clips whose highest-scoring class is true, among clips with a true label.

    Where several known classes share the highest score, the clip counts by the share of true ones among them.
    """
    correct, counted = top1_clip_sums(truth, scores)
    return float(correct.sum() / counted.sum())


def top1_clip_sums(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute, per clip, how correct its highest-scoring class is (0 to 1) and whether the clip counts."""
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    highest = np.where(known, scores, -np.inf).max(axis=1, keepdims=True)
    at_top = known & (scores == highest)
    correct = (at_top & true).sum(axis=1) / np.maximum(at_top.sum(axis=1), 1)
    return correct, np.asarray(true.any(axis=1))


def ranking_masks(
    truth: Any, scores: Any, some_true: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check truth and scores, and return the mask of true labels, the mask of known labels, and the scores.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) without NaN -> three of (n, K)
    Errors: KitError for soft truth, a NaN score, shapes that differ or, if `some_true`, no true label at all
    """
    truth, scores = check_aligned(truth, scores)
    true = truth == 1
    known = ~np.isnan(truth)
    soft = known & ~true & (truth != 0)
    if soft.any():
        raise KitError(f"truth is {truth[soft][0]:g} at {describe_first(soft)}, wanted 1, 0 or NaN.")
    missing = np.isnan(scores)
    if missing.any():
        raise KitError(f"the score at {describe_first(missing)} is NaN: leave such rows out.")
    if some_true and not true.any():
        raise KitError(f"none of the {len(true)} clips has a true label: the metric needs one or more.")
    return true, known, scores


def check_aligned(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays. Errors: KitError unless both are (clips, classes), of one shape"""
    truth = np.asarray(truth, np.float64)
    scores = np.asarray(scores)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise KitError(f"truth {truth.shape} and scores {scores.shape} must both be (clips, classes).")
    return truth, scores


def check_unit_range(what: str, values: np.ndarray, allowed: Any = False) -> None:
    """Raise KitError at the first value outside [0, 1], except where the mask `allowed` is True."""
    bad = ~((values >= 0) & (values <= 1) | allowed)
    if bad.any():
        raise KitError(f"{what} is {values[bad][0]:g} at {describe_first(bad)}, wanted 0 to 1.")


def describe_first(mask: np.ndarray) -> str:
    """Name the position of a mask's first True value."""
    row, column = np.argwhere(mask)[0]
    return f"row {row}, column {column}"
