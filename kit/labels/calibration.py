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
    """What turns a raw score into a probability: sigmoid(scale * score + offset)."""

    scale: float = setting(1.0, "factor on the raw score, above zero", low=1e-12, high=1e12)
    offset: float = setting(0.0, "added to the scaled score", low=-1e12, high=1e12)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Shape: any -> the same, in [0, 1], in float32 or wider"""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.sigmoid(self.scale * wide + self.offset)


@dataclass(frozen=True)
class ScoredClips:
    """Clips with one count of windows, their scores brought to median 0 and deviation 1.

    Shape: scores (n, W, K), targets (n, K), known (n, K)
    """

    scores: Tensor
    targets: Tensor
    known: Tensor


def fit_calibration(
    logits: Sequence[np.ndarray], truth: np.ndarray, pool: Callable[[Tensor], Tensor]
) -> Calibration:
    """The calibration whose probabilities, pooled over windows, have the least mean BCE.

    The mean is over known labels. Their targets are drawn in by one label on either side, as Platt
    does, so that data which can be told apart perfectly still has a finite answer.

    Shape:  n arrays of (W, K), truth (n, K) in [0, 1] or NaN; pool maps (W, K) -> (K,), W may be 1
    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines
    Errors: KitError for shapes that differ, values out of range, and truth without any known true
            or any known false label: such scores are fit for rank blends only.
    """
    truth = np.asarray(truth, dtype=np.float64)
    check_calibration_input(logits, truth)
    centre, spread = centre_and_spread(logits, truth)
    prior = float(np.nanmean(truth))
    logit = float(np.log(prior / (1 - prior)))
    with torch.inference_mode(False), torch.enable_grad():
        clips = list(batch_by_windows(logits, smooth_targets(truth), centre, spread))
        starts = [(slope, logit + shift) for slope in (-4.0, 0.0, 1.4) for shift in (-2.0, 0.0, 2.0)]
        first = min(starts, key=lambda s: calibration_loss(torch.tensor(s, dtype=torch.float64), clips, pool))
        log_scale, offset = minimise_calibration(first, clips, pool)
    scale = float(np.exp(log_scale)) / spread
    return Calibration(scale=scale, offset=offset - scale * centre)


def check_calibration_input(logits: Sequence[np.ndarray], truth: np.ndarray) -> None:
    """Raise KitError where scores and truth cannot be laid on each other, or hold nothing to fit."""
    if truth.ndim != 2 or len(logits) != len(truth):
        raise KitError(
            f"{len(logits)} clips of scores for truth {truth.shape}: truth must be (clips, classes)."
        )
    for i, scores in enumerate(logits):
        if scores.ndim != 2 or len(scores) < 1 or scores.shape[1] != truth.shape[1]:
            raise KitError(f"clip {i} has scores {scores.shape}, wanted (windows, {truth.shape[1]}).")
        if not np.isfinite(scores).all():
            raise KitError(f"clip {i} has scores that are not finite: leave clips without a prediction out.")
    if ((truth < 0) | (truth > 1)).any():
        raise KitError(
            f"truth runs from {np.nanmin(truth):g} to {np.nanmax(truth):g}, wanted 0 to 1, or NaN."
        )
    known = np.isfinite(truth)
    for what, share in (("true", truth[known].sum()), ("false", (1 - truth[known]).sum())):
        if not share > 0:
            raise KitError(
                f"none of the {int(known.sum())} known labels is {what}: probabilities cannot be fitted; "
                "add labelled clips, or use these scores in rank blends only."
            )


def centre_and_spread(logits: Sequence[np.ndarray], truth: np.ndarray) -> tuple[float, float]:
    """The median of the known labels' scores, and their deviation as a few wild ones cannot move it."""
    known = [np.asarray(scores)[:, ~np.isnan(row)].ravel() for scores, row in zip(logits, truth, strict=True)]
    every = np.concatenate(known).astype(np.float64)
    low, centre, high = np.percentile(every, [5, 50, 95]).tolist()
    return centre, (high - low) / 3.3 or float(every.std()) or 1.0


def smooth_targets(truth: np.ndarray) -> np.ndarray:
    """Truth with 1 drawn to (n1 + 1) / (n1 + 2) and 0 to 1 / (n0 + 2), NaN kept. Shape: kept"""
    n_true, n_false = np.nansum(truth), np.nansum(1 - truth)
    high, low = (n_true + 1) / (n_true + 2), 1 / (n_false + 2)
    return np.asarray(low + truth * (high - low))


def batch_by_windows(
    logits: Sequence[np.ndarray], targets: np.ndarray, centre: float, spread: float
) -> Iterator[ScoredClips]:
    """Clips of one window count stacked, at most CALIBRATION_CHUNK scores at once where W K allows."""
    by_count: dict[int, list[int]] = {}
    for i, scores in enumerate(logits):
        by_count.setdefault(len(scores), []).append(i)
    for count, clips in sorted(by_count.items()):
        step = max(1, CALIBRATION_CHUNK // (count * targets.shape[1]))
        for start in range(0, len(clips), step):
            chosen = clips[start : start + step]
            stacked = np.stack([np.asarray(logits[i], dtype=np.float64) for i in chosen])
            known = torch.from_numpy(~np.isnan(targets[chosen]))
            wanted = torch.from_numpy(np.nan_to_num(targets[chosen]))
            yield ScoredClips(torch.from_numpy((stacked - centre) / spread), wanted, known)


def calibration_loss(
    theta: Tensor, batches: Sequence[ScoredClips], pool: Callable[[Tensor], Tensor]
) -> float:
    """Mean BCE over known labels at theta = (log scale, offset); adds to theta's gradient if it has one.

    Logits are held within 30 and probabilities 1e-12 off 0 and 1, so no pool meets an infinite slope.
    """
    n_known = sum(int(batch.known.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        scaled = theta[0].clamp(-7.0, 7.0).exp() * batch.scores + theta[1]
        pooled = pool_each(torch.sigmoid(scaled.clamp(-30.0, 30.0)), pool).clamp(1e-12, 1 - 1e-12)
        if pooled.shape != batch.targets.shape:
            raise KitError(
                f"pool made {tuple(pooled.shape[1:])} of windows {tuple(scaled.shape[1:])}, "
                f"wanted one value per class: ({batch.targets.shape[1]},)."
            )
        losses = -(batch.targets * pooled.log() + (1 - batch.targets) * (-pooled).log1p())
        loss = losses.masked_fill(~batch.known, 0.0).sum() / n_known
        if theta.requires_grad:
            torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def pool_each(probabilities: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """`pool` over every clip at once where torch can batch it, else one by one. Shape: (n, W, K) -> (n, K)"""
    try:
        return torch.vmap(pool)(probabilities)
    except RuntimeError:
        return torch.stack([pool(clip) for clip in probabilities])


def minimise_calibration(
    first: tuple[float, float], batches: Sequence[ScoredClips], pool: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Log scale (within 7 of 0) and offset where the loss is least, from `first` by L-BFGS."""
    theta = torch.tensor(first, dtype=torch.float64, requires_grad=True)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [theta], max_iter=50, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def evaluate() -> float:
        theta.grad = None
        return calibration_loss(theta, batches, pool)

    optimizer.step(evaluate)
    log_scale, offset = theta.detach().tolist()
    return min(max(log_scale, -7.0), 7.0), offset
