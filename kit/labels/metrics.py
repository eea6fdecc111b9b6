"""Truth and scores in, label-weighted label-ranking average precision out, per clip or over one list."""

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
