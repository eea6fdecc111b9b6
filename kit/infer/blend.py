"""Scores of several models in, one score per row and class out, by the weights each row really got."""

from collections.abc import Callable, Sequence

import numpy as np

from kit.core.errors import choose

TINY = 1e-12


def row_ranks(scores: np.ndarray) -> np.ndarray:
    """Each row's scores as ranks in (0, 1], ties sharing their mean rank. Shape: (R, K) -> (R, K)"""
    order = np.argsort(scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=1)
    n_rows, n_classes = scores.shape
    rises = np.ones((n_rows, n_classes + 1), dtype=bool)
    rises[:, 1:-1] = ordered[:, 1:] != ordered[:, :-1]
    ranks = np.empty(scores.shape)
    for row, (edges, places) in enumerate(zip(rises, order, strict=True)):
        starts = np.flatnonzero(edges)
        middle = (starts[:-1] + 1 + starts[1:]) / 2.0
        ranks[row, places] = np.repeat(middle, np.diff(starts))
    return np.asarray(ranks / max(1, n_classes))


def keep_as_is(scores: np.ndarray) -> np.ndarray:
    """Scores enter an arithmetic mean, and leave it, unchanged."""
    return scores


def log_scores(scores: np.ndarray) -> np.ndarray:
    """Scores as they enter a geometric mean."""
    return np.asarray(np.log(np.maximum(scores, TINY)))


BLENDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "mean": (keep_as_is, keep_as_is),
    "geometric": (log_scores, np.exp),
    "rank": (row_ranks, keep_as_is),
}


def blend_scores(
    scores: Sequence[np.ndarray],
    done: Sequence[np.ndarray],
    weights: Sequence[float],
    priors: np.ndarray,
    kind: str = "mean",
) -> np.ndarray:
    """The weighted mean of what the models said of each row; rows nobody heard get the priors.

    A row is divided by the weights of the models that heard it, so a missing model changes no row's scale.
    Shape:  scores, one (R, K) per model; done, one (R,) bool per model; priors (K,) -> (R, K)
    Errors: KitError for an unknown kind
    """
    enter, leave = choose("blend", kind, BLENDS)
    n_rows, n_classes = (len(done[0]) if done else 0), len(priors)
    total, weight = np.zeros((n_rows, n_classes)), np.zeros(n_rows)
    for score, heard, w in zip(scores, done, weights, strict=True):
        total[heard] += w * enter(score[heard].astype(np.float64))
        weight[heard] += w
    blended = np.empty((n_rows, n_classes))
    blended[:] = enter(priors[None].astype(np.float64)) if kind == "rank" else priors
    some = weight > 0
    blended[some] = leave(total[some] / weight[some, None])
    return blended
