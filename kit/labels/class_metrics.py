"""Truth and scores in, how well each class, each clip's best class and each kind of label is told out."""

from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.labels.metrics import check_aligned, first_place, label_precisions, ranking_masks

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
