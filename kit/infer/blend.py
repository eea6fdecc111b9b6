"""Blend several models' scores, by given or fitted weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.labels.metrics import LOG_LOSS_FLOOR, check_unit_range, ranking_masks

TINY = 1e-12


def row_ranks(scores: np.ndarray) -> np.ndarray:
    """Each row's scores as ranks in (0, 1], ties sharing their mean rank. Shape: (R, K) -> (R, K)"""
    # Ties count from the left, then from the right.
    left, right = (np.argsort(s, 1, "stable").argsort(1) for s in (scores, scores[:, ::-1]))
    return np.asarray(((left + right[:, ::-1]) / 2 + 1) / max(1, scores.shape[1]))


def column_ranks(scores: np.ndarray) -> np.ndarray:
    """Each class's scores as mid-ranks among all rows, in (0, 1), 0.5 on average. Shape: (R, K) -> (R, K)"""
    return row_ranks(scores.T).T - 0.5 / max(1, len(scores))


def scale_rows(scores: np.ndarray) -> np.ndarray:
    """Each row stretched to run from 0 to 1, a constant one to 0.5. Shape: (R, K) -> (R, K)"""
    low = scores.min(axis=1, keepdims=True)
    reach = scores.max(axis=1, keepdims=True) - low
    return np.where(reach > 0, (scores - low) / np.where(reach > 0, reach, 1.0), 0.5)


def mean_differences(scores: np.ndarray) -> np.ndarray:
    """How far each class's score exceeds its row's others on average. Shape: (R, K) -> (R, K) in [-1, 1]"""
    centred = scores - scores.mean(axis=1, keepdims=True)
    return np.asarray(centred * (scores.shape[1] / max(1, scores.shape[1] - 1)))


@dataclass(frozen=True)
class BlendKind:
    """How scores enter a weighted mean and how they leave it.

    `new_scale`: what leaves is no probability, so priors enter too. `any_scale`: uncalibrated scores may enter.
    `whole_set`: a row's answer depends on all rows.
    """

    enter: Callable[[np.ndarray], np.ndarray] = np.asarray
    leave: Callable[[np.ndarray], np.ndarray] = np.asarray
    new_scale: bool = False
    any_scale: bool = False
    whole_set: bool = False


# Differences order a row as its mean does, without what lifts it as a whole; they want calibrated scores.
BLENDS: dict[str, BlendKind] = {
    "mean": BlendKind(),
    "geometric": BlendKind(lambda scores: np.log(np.maximum(scores, TINY)), np.exp),
    "power": BlendKind(np.square, np.sqrt),
    "rank": BlendKind(row_ranks, new_scale=True, any_scale=True),
    "scaled": BlendKind(scale_rows, new_scale=True, any_scale=True),
    "differences": BlendKind(mean_differences, lambda scores: (1 + scores) / 2, new_scale=True),
    "column_rank": BlendKind(column_ranks, new_scale=True, whole_set=True),
}


def blend_scores(
    scores: Sequence[np.ndarray],
    done: Sequence[np.ndarray] | None = None,
    weights: Any = None,
    priors: np.ndarray | None = None,
    kind: str = "mean",
) -> np.ndarray:
    """The weighted mean of what the models said of each row; rows nobody heard get the priors, on the same scale.

    In a blend of the whole set, only models that heard every heard row count, while there is one.

    Shape:  scores (R, K) and done (R,) bool of each of m models; weights (m,) or (m, K); priors (K,) -> (R, K)
    Source: power is the quadratic mean; scaled and differences after RFCX 2021's 32nd place
    """
    how = choose("blend", kind, BLENDS)
    done = [np.ones(len(score), bool) for score in scores] if done is None else done
    weights = np.ones(len(scores)) if weights is None else weights
    priors = np.zeros(scores[0].shape[1]) if priors is None else priors
    shares, start = weight_table(weights, len(scores), len(priors)), np.asarray(priors, np.float64)[None]
    if how.whole_set and len(done):
        scores, done, shares = whole_columns(scores, done, shares, priors)
    n_rows = len(done[0]) if len(done) else 0
    total, weight = np.zeros((n_rows, len(priors))), np.zeros((n_rows, shares.shape[1]))
    for score, heard, share in zip(scores, done, shares, strict=True):
        total[heard] += share * how.enter(score[heard].astype(np.float64))
        weight[heard] += share
    some = weight > 0
    blended = how.leave(total / np.where(some, weight, 1.0))
    return np.where(some, blended, how.leave(how.enter(start)) if how.new_scale else start)


def weight_table(weights: Any, models: int, classes: int) -> np.ndarray:
    """Weights as a column, or a column per class. Shape: (m,) or (m, K) -> (m, 1 or K)"""
    table = np.asarray(weights, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.shape not in {(models, 1), (models, classes)} or not ((table >= 0) & np.isfinite(table)).all():
        wanted = f"one from 0 up per model ({models},), or per model and class ({models}, {classes})"
        raise KitError(f"weights of shape {np.shape(weights)}, wanted {wanted}.")
    return table


def whole_columns(
    scores: Sequence[np.ndarray], done: Sequence[np.ndarray], shares: np.ndarray, priors: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """The models that heard every heard row, or all; rows nobody heard stand at the priors."""
    unheard = ~np.any(done, axis=0)
    filled = [heard | unheard for heard in done]
    whole = [i for i, rows in enumerate(filled) if rows.all()] or [*range(len(done))]
    columns = [np.where(done[i][:, None], scores[i], priors) for i in whole]
    return columns, [filled[i] for i in whole], shares[whole]


NEWTON_TOLERANCE = 1e-8


def fit_weights(scores: Any, truth: Any, strength: float = 1.0) -> np.ndarray:
    """One weight per model, summing to 1, whose mean blend has the least log loss on known labels.

    They are drawn towards equal ones as `strength` labels of the rarer kind would.

    Shape:  scores (m, n, K) in [0, 1], truth (n, K) of 1, 0 or NaN -> (m,)
    """
    likely, true, known = label_likelihoods(scores, truth)
    share = prior_share(min(true.sum(), (known & ~true).sum()), strength)
    return mixture_weights(likely[:, known], np.ones(len(likely)) / len(likely), float(share))


def prior_share(labels: Any, strength: float) -> Any:
    """How much a prior of `strength` labels counts beside so many real ones."""
    check_strength(strength)
    return np.maximum(strength / (strength + labels), 1e-6)


def label_likelihoods(scores: Any, truth: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How likely each model held each label, 1 where it is unknown; which are true, which known.

    Shape:  scores (m, n, K), truth (n, K) -> (m, n, K) in (0, 1], (n, K), (n, K)
    """
    if np.ndim(scores) != 3 or not len(scores):
        raise KitError(f"scores {np.shape(scores)}, wanted (models, clips, classes): stack them.")
    likely = np.ones(np.shape(scores))
    for one, of_model in zip(scores, likely, strict=True):
        true, known, one = ranking_masks(truth, one)
        check_unit_range("the probability", one)
        held = np.clip(one.astype(np.float64), LOG_LOSS_FLOOR, 1 - LOG_LOSS_FLOOR)
        of_model[known] = np.where(true, held, 1 - held)[known]
    return likely, true, known


def mixture_weights(likely: np.ndarray, towards: np.ndarray, share: float, most: int = 200) -> np.ndarray:
    """The weights w, summing to 1, where (1 - share) mean log(w likely) + share towards log(w) is greatest.

    Concave, so at `most` so many damped Newton steps reach it; EM crawls where models are alike. Less the sum of w,
    the same maximum needs no constraint. What is left to gain, in nats, is at most the steepest slope minus 1.

    Shape:  likely (m, n) above 0, towards (m,) above 0, share in [1e-6, 1] -> (m,)
    Source: Kim, Carbonetto, Stephens & Anitescu 2020, arXiv:1806.01412
    """
    weights: np.ndarray = towards / towards.sum()

    def height(w: np.ndarray) -> float:
        return float((1 - share) * np.log(w @ likely).mean() + share * (towards @ np.log(w)) - w.sum())

    for _ in range(most if likely.shape[1] else 0):
        ratios = likely / (weights @ likely)
        slope = (1 - share) * ratios.mean(axis=1) + share * towards / weights
        if slope.max() < 1 + NEWTON_TOLERANCE:
            break
        # In units of each weight, so that one near 0 is well conditioned.
        bend = (1 - share) * np.outer(weights, weights) * (ratios @ ratios.T) / likely.shape[1]
        step = np.linalg.solve(bend + np.diag(share * towards), weights * (slope - 1))
        size = min(1.0, 0.95 / max(-float(step.min()), 1e-9))
        while size > 1e-9 and height(weights * (1 + size * step)) < height(weights):
            size /= 2
        weights = weights * (1 + size * step)
        weights /= weights.sum()
    return weights


def check_strength(strength: float, unit: str = "labels") -> None:
    """Raise KitError unless a prior has some strength."""
    if not strength > 0:
        raise KitError(f"strength must be above 0 {unit}, got {strength}.")
