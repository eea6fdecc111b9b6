'''Blend several models' scores, with given or fitted weights.'''

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kit.core.errors import KitError, choose
from kit.labels.metrics import label_likelihoods

TINY = 1e-12


def row_ranks(scores: np.ndarray) -> np.ndarray:
    '''Rank each row's scores in (0, 1]; ties share their mean rank.'''
    # A stable sort counts ties from the left, that of the mirrored row from the right.
    from_left = np.argsort(scores, 1, 'stable').argsort(1)
    from_right = np.argsort(scores[:, ::-1], 1, 'stable').argsort(1)[:, ::-1]
    return ((from_left + from_right) / 2 + 1) / max(1, scores.shape[1])


def column_ranks(scores: np.ndarray) -> np.ndarray:
    '''Rank each class's scores among all rows: mid-ranks in (0, 1), 0.5 on average.'''
    return row_ranks(scores.T).T - 0.5 / max(1, len(scores))


def scale_rows(scores: np.ndarray) -> np.ndarray:
    '''Stretch each row to run from 0 to 1; a constant row becomes 0.5.'''
    low = scores.min(axis=1, keepdims=True)
    reach = scores.max(axis=1, keepdims=True) - low
    return np.where(reach > 0, (scores - low) / np.where(reach > 0, reach, 1.0), 0.5)


def mean_differences(scores: np.ndarray) -> np.ndarray:
    '''Subtract from each score the mean of the row's other scores.'''
    centred = scores - scores.mean(axis=1, keepdims=True)
    return centred * (scores.shape[1] / max(1, scores.shape[1] - 1))


@dataclass(frozen=True)
class BlendKind:
    '''How scores are transformed before a weighted mean (`enter`) and after it (`leave`).

    `new_scale`: the results are no probabilities, so priors are transformed too.
    `any_scale`: scores without a calibration may enter.
    `whole_row`: a score depends on the row's other classes, which each model must know.
    `whole_set`: a row's result depends on all rows.
    '''

    enter: Callable[[np.ndarray], np.ndarray] = np.asarray
    leave: Callable[[np.ndarray], np.ndarray] = np.asarray
    new_scale: bool = False
    any_scale: bool = False
    whole_row: bool = False
    whole_set: bool = False


# "differences" orders a row as its mean does, less what raises the whole row. It needs calibrated scores.
BLENDS: dict[str, BlendKind] = {
    'mean': BlendKind(),
    'geometric': BlendKind(lambda scores: np.log(np.maximum(scores, TINY)), np.exp),
    'power': BlendKind(np.square, np.sqrt),
    'rank': BlendKind(row_ranks, new_scale=True, any_scale=True, whole_row=True),
    'scaled': BlendKind(scale_rows, new_scale=True, any_scale=True, whole_row=True),
    'differences': BlendKind(mean_differences, lambda scores: (1 + scores) / 2, new_scale=True, whole_row=True),
    'column_rank': BlendKind(column_ranks, new_scale=True, whole_set=True),
}


def blend_scores(
    scores: Sequence[np.ndarray],
    done: Sequence[np.ndarray] | None = None,
    weights: Sequence[float] | None = None,
    priors: np.ndarray | None = None,
    kind: str = 'mean',
    known: np.ndarray | None = None,
) -> np.ndarray:
    '''Average the scores that the models gave each row; rows without any get the priors, on the same scale.

    A class is averaged over the models that know it; one that none knows gets its prior. A blend of the whole set uses
    the models that scored every row which any scored, if there are some.

    Shape:  scores (R, K) and done (R,) bool of each of m models; weights (m,); priors (K,); known (m, K) bool, all of
            them unless given -> (R, K)
    Source: power is the quadratic mean; scaled and differences after RFCX 2021's 32nd place
    Errors: KitError for a blend that compares a row's classes, where models know different ones
    '''
    blend = choose('blend', kind, BLENDS)
    if done is None:
        done = [np.ones(len(score), bool) for score in scores]
    if priors is None:
        priors = np.zeros(scores[0].shape[1])
    if known is None:
        known = np.ones((len(scores), len(priors)), bool)
    if blend.whole_row and (known != known[:1]).any():
        raise KitError(f'blend {kind} compares the classes of a row, but the models know different ones: use mean.')
    shares = np.array(check_weights(weights, len(scores)))[:, None] * known
    if blend.whole_set and len(done):
        scores, done, shares = keep_whole_columns(scores, done, shares, priors)
    total = np.zeros((len(done[0]) if len(done) else 0, len(priors)))
    weight = np.zeros_like(total)
    for score, mask, share in zip(scores, done, shares, strict=True):
        total[mask] += share * blend.enter(score[mask].astype(np.float64))
        weight[mask] += share
    any_score = weight > 0
    blended = blend.leave(total / np.where(any_score, weight, 1.0))
    prior_row = np.asarray(priors, np.float64)[None]
    return np.where(any_score, blended, blend.leave(blend.enter(prior_row)) if blend.new_scale else prior_row)


def check_weights(weights: Sequence[float] | None, models: int) -> list[float]:
    '''One positive weight per model, 1 by default.'''
    try:
        checked = [1.0] * models if weights is None else [float(weight) for weight in weights]
    except (TypeError, ValueError):
        checked = []
    if len(checked) != models or not all(1e-9 < weight < 1e9 for weight in checked):
        raise KitError(f'weights: one positive number per model, {models} of them, got {weights}.')
    return checked


def keep_whole_columns(
    scores: Sequence[np.ndarray], done: Sequence[np.ndarray], weights: np.ndarray, priors: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    '''Keep the models that scored every row which any scored, or all; rows that none scored get the priors.'''
    no_score = ~np.any(done, axis=0)
    masks = [mask | no_score for mask in done]
    kept = [i for i, mask in enumerate(masks) if mask.all()] or list(range(len(done)))
    return [np.where(done[i][:, None], scores[i], priors) for i in kept], [masks[i] for i in kept], weights[kept]


def fit_weights(scores: np.ndarray, truth: np.ndarray, strength: float = 1.0) -> np.ndarray:
    '''Fit one weight per model, summing to 1, for the mean blend with the least log loss on known labels.

    A prior pulls them towards equal weights; it counts as `strength` labels of the rarer kind.

    Shape:  scores (m, n, K) in [0, 1], truth (n, K) of 1, 0 or NaN -> (m,)
    '''
    likelihood = np.stack([label_likelihoods(truth, probs)[~np.isnan(truth)] for probs in scores])
    rarer = min((truth == 1).sum(), (truth == 0).sum())
    share = max(strength / (strength + rarer), 1e-6)
    return mixture_weights(likelihood, np.ones(len(likelihood)) / len(likelihood), float(share))


def mixture_weights(likelihood: np.ndarray, towards: np.ndarray, share: float, max_steps: int = 200) -> np.ndarray:
    '''Maximize (1 - share) mean log(w likelihood) + share towards log(w) over weights w that sum to 1.

    The objective is concave, so damped Newton steps reach its maximum; EM is slow where models are alike. With the sum
    of w subtracted, it needs no constraint. What is left to gain, in nats, is at most the steepest slope minus 1.

    Shape:  likelihood (m, n) above 0, towards (m,) above 0, share in [1e-6, 1] -> (m,)
    Source: Kim, Carbonetto, Stephens & Anitescu 2020, arXiv:1806.01412
    '''
    weights: np.ndarray = towards / towards.sum()

    def objective(w: np.ndarray) -> float:
        return float((1 - share) * np.log(w @ likelihood).mean() + share * (towards @ np.log(w)) - w.sum())

    for _ in range(max_steps if likelihood.shape[1] else 0):
        ratios = likelihood / (weights @ likelihood)
        slope = (1 - share) * ratios.mean(axis=1) + share * towards / weights
        if slope.max() < 1 + 1e-8:
            break
        # The step is in units of each weight: so a weight near 0 is well conditioned.
        curvature = (1 - share) * np.outer(weights, weights) * (ratios @ ratios.T) / likelihood.shape[1]
        step = np.linalg.solve(curvature + np.diag(share * towards), weights * (slope - 1))
        size = min(1.0, 0.95 / max(-float(step.min()), 1e-9))
        while size > 1e-9 and objective(weights * (1 + size * step)) < objective(weights):
            size /= 2
        weights = weights * (1 + size * step)
        weights /= weights.sum()
    return weights
