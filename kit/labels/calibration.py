'''Platt scaling of raw scores, fitted to probabilities that are pooled over windows; thresholds for decisions.'''

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.labels.metrics import METRICS, f1_scores, ranking_masks

CALIBRATION_CHUNK = 1 << 20


@dataclass(frozen=True)
class Calibration(Config):
    '''The map from a raw score to a probability: sigmoid(scale * score + offset).'''

    scale: float = setting(1.0, 'factor of the raw score', low=1e-12, high=1e12)
    offset: float = setting(0.0, 'constant added to the scaled score', low=-1e12, high=1e12)

    def probabilities(self, logits: Tensor) -> Tensor:
        '''Compute probabilities in float32 or wider, of the same shape.'''
        return torch.sigmoid(self.scale * logits.to(torch.promote_types(logits.dtype, torch.float32)) + self.offset)


class CalibrationBatch(NamedTuple):
    '''Clips with the same number of windows. Shape: scores (n, W, K), targets (n, K), known (n, K) bool'''

    scores: Tensor
    targets: Tensor
    known: Tensor


def fit_calibration(logits: Sequence[np.ndarray], truth: np.ndarray, pool: Callable[[Tensor], Tensor]) -> Calibration:
    '''Fit scale and offset so that the pooled probabilities have the least mean log loss on known labels.

    Shape:  n arrays of (W, K), truth (n, K) in [0, 1] or NaN; pool maps (W, K) -> (K,) and suits torch.vmap
    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines
    '''
    # The fit goes through the pool, as submissions pool calibrated windows: the mean of their probabilities is not
    # calibrated. Log loss on new clips of 2 to 4 windows (simulated, mean): 0.172 through the pool, 0.191 with
    # scikit-learn's logistic regression on windows, 0.213 on pooled scores; equal to three digits for one window.
    truth = np.asarray(truth, np.float64)
    n_true, n_false = np.nansum(truth), np.nansum(1 - truth)
    for kind, total in (('true', n_true), ('false', n_false)):
        if not total > 0:
            raise KitError(f'none of the {np.isfinite(truth).sum()} known labels is {kind}: use rank blends.')
    known_scores = np.concatenate(
        [scores[:, ~np.isnan(row)].ravel() for scores, row in zip(logits, truth, strict=True)]
    ).astype(np.float64)
    # Scores are standardised, so that equal start values fit networks of any scale, by percentiles that few extreme
    # scores do not move; in a normal distribution 3.3 deviations lie between these two.
    low_score, centre, high_score = np.percentile(known_scores, [5, 50, 95]).tolist()
    spread = (high_score - low_score) / 3.3 or float(known_scores.std()) or 1.0
    # Platt's targets: not 1 and 0 but the rates expected with one more label of each kind. Where scores separate true
    # from false perfectly, 1 and 0 would drive the scale to infinity.
    low_target, high_target = 1 / (n_false + 2), (n_true + 1) / (n_true + 2)
    targets = low_target + truth * (high_target - low_target)
    # With a pool the loss is not convex in (log scale, offset): the search begins at the best of nine points.
    prior = float(np.nanmean(truth))
    prior_logit = float(np.log(prior / (1 - prior)))
    starts = [[log_scale, prior_logit + shift] for log_scale in (-4.0, 0.0, 1.4) for shift in (-2.0, 0.0, 2.0)]
    with torch.inference_mode(False), torch.enable_grad():
        batches = list(batch_by_windows(logits, targets, centre, spread))
        thetas = torch.tensor(starts, dtype=torch.float64)
        best = int(np.argmin([calibration_loss(theta, batches, pool) for theta in thetas]))
        theta = thetas[best].clone().requires_grad_()
        optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
            [theta], max_iter=50, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn='strong_wolfe'
        )

        def evaluate() -> float:
            theta.grad = None
            return calibration_loss(theta, batches, pool)

        optimizer.step(evaluate)
    log_scale, offset = theta.detach().tolist()
    scale = float(np.exp(min(max(log_scale, -7.0), 7.0))) / spread
    return Calibration(scale=scale, offset=offset - scale * centre)


def batch_by_windows(
    logits: Sequence[np.ndarray], targets: np.ndarray, centre: float, spread: float
) -> Iterator[CalibrationBatch]:
    '''Stack clips with equal numbers of windows, up to about CALIBRATION_CHUNK scores.'''
    window_counts = np.array([len(scores) for scores in logits])
    for count in np.unique(window_counts):
        clips = np.flatnonzero(window_counts == count)
        for chosen in np.array_split(clips, -(-len(clips) * count * targets.shape[1] // CALIBRATION_CHUNK)):
            stacked = np.stack([np.asarray(logits[i], np.float64) for i in chosen])
            labels = torch.from_numpy(targets[chosen])
            scores = torch.from_numpy((stacked - centre) / spread)
            yield CalibrationBatch(scores, labels.nan_to_num(), ~labels.isnan())


def calibration_loss(theta: Tensor, batches: Sequence[CalibrationBatch], pool: Callable[[Tensor], Tensor]) -> float:
    '''Compute the mean log loss at theta = (log scale, offset), and add its gradient to theta's.

    Each batch is backpropagated alone: memory holds one graph.
    '''
    n_known = sum(int(batch.known.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        # Beyond 30 a sigmoid is 0 or 1 in effect. There the gradients of pools such as the geometric mean would be
        # infinite or NaN, and those of the logarithms below at 0 and 1 too. Both clamps prevent this.
        scale = theta[0].clamp(-7.0, 7.0).exp()
        scaled = (scale * batch.scores + theta[1]).clamp(-30.0, 30.0)
        pooled = torch.vmap(pool)(torch.sigmoid(scaled)).clamp(1e-12, 1 - 1e-12)
        losses = -(batch.targets * pooled.log() + (1 - batch.targets) * (-pooled).log1p())
        loss = losses.masked_fill(~batch.known, 0.0).sum() / n_known
        if theta.requires_grad:
            torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def fit_thresholds(metric: str, truth: Any, probs: Any, strength: float = 16.0) -> np.ndarray:
    '''Fit the thresholds of the best F1: one for all classes if the metric is over clips, else one per class.

    A prior pulls each class towards the threshold of the best mean over classes; it counts as `strength` true labels.

    Shape:  truth (n, K) of 1, 0 or NaN, probs (n, K) in [0, 1] -> (K,)
    '''
    true, known, probs = ranking_masks(truth, probs, some_true=True)
    grid = 1 / (1 + np.exp(-np.linspace(-6, 6, 121)))
    is_over_clips = METRICS[metric].clip_sums is not None
    f1 = np.stack([f1_scores(true, known & (probs >= threshold), int(is_over_clips)) for threshold in grid])
    if is_over_clips:
        common = f1[:, known.any(axis=1)].mean(axis=1)
        return np.full(true.shape[1], grid[common.argmax()])
    n_true = true.sum(axis=0)
    common = f1[:, n_true > 0].mean(axis=1)
    return grid[(n_true * f1 + strength * common[:, None]).argmax(axis=0)]
