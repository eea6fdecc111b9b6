"""Metrics of ranking and classification, with bootstrap intervals."""

from typing import Any

import numpy as np

from kit.core.errors import KitError

RANKING_CHUNK = 1 << 19


def lwlrap(truth: Any, scores: Any) -> float:
    """Label-weighted label-ranking average precision: every true label of the set counts alike.

    A label's precision is the share of true labels among those scored at least as high in its clip.
    An unknown label (NaN) is neither ranked nor counted.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number in (0, 1]
    Source: Fonseca et al. 2019, arXiv:1906.02975; ties as scikit-learn counts them
    """
    precisions, true = true_precisions(truth, scores)
    return float(precisions.sum(axis=0).sum() / true.sum())


def lwlrap_per_class(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each class's mean precision and its share of the true labels; lwlrap is the sum of their products.

    A class without a true label has precision 0 and weight 0.

    Shape:  truth (n, K), scores (n, K) -> precision (K,), weight (K,)
    """
    precisions, true = true_precisions(truth, scores)
    positives = true.sum(axis=0)
    return precisions.sum(axis=0) / np.maximum(positives, 1), positives / positives.sum()


def lwlrap_flat(truth: Any, scores: Any) -> float:
    """lwlrap with all known labels of the set ranked in one list, so that clips are compared too.

    It is their micro average precision.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number in (0, 1], in O(n K log(n K))
    Source: as the 32nd place of RFCX 2021 validated
    """
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    precisions = label_precisions(*(labels[known][None] for labels in (true, known, scores)))
    return float(precisions.sum() / true.sum())


def clip_precision_sums(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Per clip, the sum of its true labels' precisions and their number; lwlrap is the ratio of their sums.

    Shape:  truth (n, K), scores (n, K) -> (n,), (n,)
    """
    precisions, true = true_precisions(truth, scores)
    return precisions.sum(axis=1), true.sum(axis=1)


def true_precisions(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """The precision of every true label and 0 elsewhere, and which are true. Shape: -> (n, K), (n, K)"""
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    return label_precisions(true, known, scores), true


def ranking_masks(
    truth: Any, scores: Any, some_true: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which labels are true (some, if wanted), which are known, and the scores as an array, checked.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) without NaN -> three of (n, K)
    """
    truth, scores = check_aligned(truth, scores)
    true, known, missing = truth == 1, ~np.isnan(truth), np.isnan(scores)
    soft = known & ~true & (truth != 0)
    if soft.any():
        raise KitError(f"truth is {truth[soft][0]:g} at {first_place(soft)}, wanted 1, 0 or NaN.")
    if missing.any():
        raise KitError(f"the score at {first_place(missing)} is NaN: leave such rows out.")
    if some_true and not true.any():
        raise KitError(f"none of the {len(true)} clips has a true label: nothing to rank.")
    return true, known, scores


def check_aligned(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays. Raise KitError unless they are clips by classes, one score per label."""
    truth, scores = np.asarray(truth, np.float64), np.asarray(scores)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise KitError(f"truth {truth.shape} and scores {scores.shape} must both be (clips, classes).")
    return truth, scores


def first_place(bad: np.ndarray) -> str:
    """The first True of a mask in words."""
    row, column = np.argwhere(bad)[0]
    return f"row {row}, column {column}"


def label_precisions(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For every true label, the share of true ones among its row's known labels scored at least as high; else 0.

    Shape:  three of (n, K) -> (n, K)
    """
    precisions, step = np.empty(true.shape), max(1, RANKING_CHUNK // max(1, true.shape[1]))
    for rows in (slice(start, start + step) for start in range(0, len(true), step)):  # so memory is bounded
        order = np.argsort(scores[rows], axis=1)
        ranked = np.take_along_axis(scores[rows], order, axis=1)
        first = np.broadcast_to(np.arange(ranked.shape[1]), ranked.shape).copy()
        first[:, 1:][ranked[:, 1:] == ranked[:, :-1]] = 0
        first = np.maximum.accumulate(first, axis=1)
        n_true, n_known = (
            np.take_along_axis(labels[rows], order, 1)[:, ::-1].cumsum(1)[:, ::-1] for labels in (true, known)
        )
        share = np.take_along_axis(n_true / np.maximum(n_known, 1), first, axis=1)
        np.put_along_axis(precisions[rows], order, share, axis=1)
    return np.where(true, precisions, 0.0)


LOG_LOSS_FLOOR = 1e-7


def auc_per_class(truth: Any, scores: Any) -> np.ndarray:
    """Per class, the chance that a true clip outscores a false one, a tie counting half.

    NaN where the known labels are not of both kinds. The macro mean is np.nanmean of it.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K,) in [0, 1] or NaN
    Source: Hanley & McNeil 1982, The meaning and use of the area under a ROC curve
    """
    true, known, scores = ranking_masks(truth, scores)
    chances = np.full(true.shape[1], np.nan)
    for k, seen in enumerate(known.T):
        hits = true[seen, k]
        n_true, n_false = hits.sum(), (~hits).sum()
        if n_true and n_false:
            _, place, ties = np.unique(scores[seen, k], return_inverse=True, return_counts=True)
            mid_ranks = (ties.cumsum() - (ties - 1) / 2)[place]
            chances[k] = (mid_ranks[hits].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false)
    return chances


def average_precision_per_class(truth: Any, scores: Any) -> np.ndarray:
    """Per class, the mean over its true clips of the share of true ones among those scored at least as high.

    NaN where no known label is true. The macro mean is np.nanmean of it.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K,) in (0, 1] or NaN
    Source: ties as scikit-learn's average_precision_score counts them
    """
    true, known, scores = ranking_masks(truth, scores)
    n_true = true.sum(axis=0)
    sums = label_precisions(true.T, known.T, scores.T).sum(axis=1)
    return np.where(n_true, sums / np.maximum(n_true, 1), np.nan)


def log_losses(truth: Any, probabilities: Any) -> tuple[float, float]:
    """Mean log loss on what is known true and on what is known false; NaN for a kind that is not there.

    A soft label t counts t as true and 1 - t as false. Probabilities are held 1e-7 off 0 and 1.

    Shape:  truth (n, K) in [0, 1] or NaN, probabilities (n, K) -> (on positives, on negatives)
    Units:  nats
    Source: the check of RFCX 2021's 2nd place
    """
    truth, probabilities = check_aligned(truth, probabilities)
    known = ~np.isnan(truth)
    check_unit_range("truth", truth, ~known)
    check_unit_range("the probability", probabilities)
    if not known.any():
        raise KitError(f"none of the labels of {len(truth)} clips is known: give some.")
    weights = np.stack([truth[known], 1 - truth[known]])
    chance = probabilities[known].astype(np.float64).clip(LOG_LOSS_FLOOR, 1 - LOG_LOSS_FLOOR)
    sums, totals = (weights * -np.stack([np.log(chance), np.log1p(-chance)])).sum(axis=1), weights.sum(axis=1)
    positives, negatives = np.where(totals > 0, sums / totals.clip(1e-300), np.nan).tolist()
    return positives, negatives


def check_unit_range(what: str, values: np.ndarray, allowed: Any = False) -> None:
    """Raise KitError for the first value outside [0, 1] that is not allowed, naming its place."""
    bad = ~((values >= 0) & (values <= 1) | allowed)
    if bad.any():
        raise KitError(f"{what} is {values[bad][0]:g} at {first_place(bad)}, wanted 0 to 1.")


def top1_accuracy(truth: Any, scores: Any) -> float:
    """The share of clips whose best class is true, among those with a known true label.

    An unknown label is neither right nor wrong. A tie at the top counts by the share of true ones in it.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number in [0, 1]
    """
    right, counted = top1_clip_sums(truth, scores)
    return float(right.sum() / counted.sum())


def top1_clip_sums(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Per clip, how far its best class is true, and whether any is. Shape: -> (n,), (n,)"""
    true, known, scores = ranking_masks(truth, scores, some_true=True)
    best = np.where(known, scores, -np.inf).max(axis=1, keepdims=True)
    at_top = known & (scores == best)
    right = (at_top & true).sum(axis=1) / np.maximum(at_top.sum(axis=1), 1)
    return right, true.sum(axis=1) > 0
