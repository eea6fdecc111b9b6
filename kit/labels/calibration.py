"""Raw scores and truth in, the scale and offset that make them probabilities out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kit.core.config import Config, setting
from kit.core.errors import KitError

CALIBRATION_CHUNK = 1 << 20


@dataclass(frozen=True)
class Calibration(Config):
    """A raw score's probability: sigmoid(scale * score + offset)."""

    scale: float = setting(1.0, "factor on the raw score", low=1e-12, high=1e12)
    offset: float = setting(0.0, "added to the scaled score", low=-1e12, high=1e12)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Shape: any -> the same, in [0, 1], in float32 or wider"""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.sigmoid(self.scale * wide + self.offset)


# Clips with one count of windows: scores (n, W, K) at median 0 and deviation 1, targets (n, K), known (n, K).
ScoredClips = tuple[Tensor, Tensor, Tensor]


def fit_calibration(
    logits: Sequence[np.ndarray], truth: np.ndarray, pool: Callable[[Tensor], Tensor]
) -> Calibration:
    """The calibration whose probabilities, pooled over windows, have the least mean BCE on known labels.

    Their targets are drawn in by one label on either side, as Platt does, so that classes told apart
    perfectly have a finite answer too.

    Shape:  n arrays of (W, K), truth (n, K) in [0, 1] or NaN; pool maps (W, K) -> (K,), W may be 1
    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines
    Errors: KitError for shapes that differ, values out of range, no known true or no known false label
    """
    truth = np.asarray(truth, np.float64)
    check_calibration_input(logits, truth)
    known = [scores[:, ~np.isnan(row)].ravel() for scores, row in zip(logits, truth, strict=True)]
    every = np.concatenate(known).astype(np.float64)
    # The deviation is one that a few wild scores cannot move.
    least, centre, most = np.percentile(every, [5, 50, 95]).tolist()
    spread = (most - least) / 3.3 or float(every.std()) or 1.0
    n_true, n_false, prior = np.nansum(truth), np.nansum(1 - truth), float(np.nanmean(truth))
    low, high, logit = 1 / (n_false + 2), (n_true + 1) / (n_true + 2), float(np.log(prior / (1 - prior)))
    starts = [(slope, logit + shift) for slope in (-4.0, 0.0, 1.4) for shift in (-2.0, 0.0, 2.0)]
    with torch.inference_mode(False), torch.enable_grad():
        clips = list(batch_by_windows(logits, low + truth * (high - low), centre, spread))
        first = min(starts, key=lambda s: calibration_loss(torch.tensor(s, dtype=torch.float64), clips, pool))
        theta = torch.tensor(first, dtype=torch.float64, requires_grad=True)
        optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
            [theta], max_iter=50, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def evaluate() -> float:
            theta.grad = None
            return calibration_loss(theta, clips, pool)

        optimizer.step(evaluate)
    log_scale, offset = theta.detach().tolist()
    scale = float(np.exp(min(max(log_scale, -7.0), 7.0))) / spread
    return Calibration(scale=scale, offset=offset - scale * centre)


def check_calibration_input(logits: Sequence[np.ndarray], truth: np.ndarray) -> None:
    """Raise KitError where scores and truth do not fit, or hold nothing to fit."""
    if truth.ndim != 2 or len(logits) != len(truth):
        raise KitError(f"{len(logits)} clips of scores for truth {truth.shape}, wanted (clips, classes).")
    for i, scores in enumerate(logits):
        if scores.ndim != 2 or not len(scores) or scores.shape[1] != truth.shape[1]:
            raise KitError(f"clip {i} has scores {scores.shape}, wanted (windows, {truth.shape[1]}).")
        if not np.isfinite(scores).all():
            raise KitError(f"clip {i} has scores that are not finite: leave it out.")
    known = truth[~np.isnan(truth)]
    if ((known < 0) | (known > 1)).any():
        raise KitError(f"truth runs from {known.min():g} to {known.max():g}, wanted 0 to 1, or NaN.")
    for what, share in (("true", known.sum()), ("false", (1 - known).sum())):
        if not share > 0:
            raise KitError(f"none of the {len(known)} known labels is {what}: use rank blends.")


def batch_by_windows(
    logits: Sequence[np.ndarray], targets: np.ndarray, centre: float, spread: float
) -> Iterator[ScoredClips]:
    """Clips of one window count stacked, some CALIBRATION_CHUNK scores at most."""
    counts = np.array([len(scores) for scores in logits])
    for count in np.unique(counts):
        clips = np.flatnonzero(counts == count)
        for chosen in np.array_split(clips, -(-len(clips) * count * targets.shape[1] // CALIBRATION_CHUNK)):
            stacked = np.stack([np.asarray(logits[i], np.float64) for i in chosen])
            wanted = torch.from_numpy(targets[chosen])
            yield torch.from_numpy((stacked - centre) / spread), wanted.nan_to_num(), ~wanted.isnan()


def calibration_loss(
    theta: Tensor, batches: Sequence[ScoredClips], pool: Callable[[Tensor], Tensor]
) -> float:
    """Mean BCE over known labels at theta = (log scale, offset), whose gradient it adds to.

    Logits are held within 30 and probabilities 1e-12 off 0 and 1, so no pool meets an infinite slope.
    """
    n_known, total = sum(int(known.sum()) for *_, known in batches), 0.0
    for scores, targets, known in batches:
        scaled = theta[0].clamp(-7.0, 7.0).exp() * scores + theta[1]
        pooled = pool_each(torch.sigmoid(scaled.clamp(-30.0, 30.0)), pool).clamp(1e-12, 1 - 1e-12)
        if pooled.shape != targets.shape:
            raise KitError(f"pool made {tuple(pooled.shape[1:])}, wanted one value per class.")
        losses = -(targets * pooled.log() + (1 - targets) * (-pooled).log1p())
        loss = losses.masked_fill(~known, 0.0).sum() / n_known
        if theta.requires_grad:
            torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def pool_each(probabilities: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """`pool` over all clips at once where torch can batch it. Shape: (n, W, K) -> (n, K)"""
    try:
        return torch.vmap(pool)(probabilities)
    except RuntimeError:
        return torch.stack([pool(clip) for clip in probabilities])
