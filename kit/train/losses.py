"""Losses on logits, one number per clip; unknown labels are masked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.errors import KitError, choose

NEGLIGIBLE_LOG = -1e9


class RowLoss(NamedTuple):
    """What each clip costs, 0 without labels, and how many took part. Shape: (B,) each, float32 or wider"""

    loss: Tensor
    known: Tensor


RowLossFunction = Callable[[Tensor, Tensor], RowLoss]


def average_loss(row: RowLoss, weights: Tensor | None = None, over: str = "clips") -> Tensor:
    """The mean over clips with a known label, or over known labels; 0 without any.

    Shape:  row of (B,), weights of the clips (B,) -> scalar
    """
    count = choose("average", over, {"clips": (row.known > 0).to(row.loss.dtype), "labels": row.known})
    if weights is not None:
        count = count * check_one_per_clip(weights, len(count))
    total = count.sum()
    return (row.loss * count).sum() / total.where(total > 0, 1.0)


def check_one_per_clip(values: Tensor, clips: int) -> Tensor:
    """The values. Raise KitError unless there is one for each clip."""
    if values.shape != (clips,):
        raise KitError(f"{tuple(values.shape)} values for {clips} clips: give one per clip.")
    return values


def sum_by_source(
    logits: Tensor, targets: Tensor, sources: Tensor, parts: Sequence[tuple[RowLossFunction, float]],
    weights: Tensor | None = None, over: str = "clips", weight_by_share: bool = True,
) -> Tensor:  # fmt: skip
    """Each source's average by its own loss, times its weight and, unless told, its share of the clips.

    Shape:  logits (B, K), targets (B, K), sources (B,) as indices of parts, weights (B,) -> scalar
    Source: first place, Freesound 2019 (curated BCE, noisy bootstrapping, .5 each, by share)
    """
    if not parts or sources.shape != logits.shape[:1] or ((sources < 0) | (sources >= len(parts))).any():
        raise KitError(f"sources wants for {len(logits)} clips each an index of {len(parts)} parts.")
    terms = []
    for index, (loss, weight) in enumerate(parts):
        rows = sources == index
        own = None if weights is None else weights[rows]
        share = rows.sum() / max(1, len(rows)) if weight_by_share else 1.0
        terms.append(weight * share * average_loss(loss(logits[rows], targets[rows]), own, over))
    return torch.stack(terms).sum()


def bce_of_labels(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of each label. Shape: two of (B, K) -> (B, K)"""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=positive_weight)


def bce_loss(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, positive_weight: Tensor | float | None = None
) -> RowLoss:
    """Binary cross-entropy on targets drawn in by `smoothing` at both ends, truth weighted against falsehood.

    Shape:  logits and targets (B, K), positive_weight () or (K,) -> RowLoss
    Source: smoothing .01: second place, Freesound 2019
    """
    if not 0 <= smoothing < 0.5:
        raise KitError(f"smoothing must be in [0, 0.5), got {smoothing}.")
    logits, targets, known = widen_for_loss(logits, targets)
    if positive_weight is not None:
        positive_weight = torch.as_tensor(positive_weight).to(logits)
        if positive_weight.shape not in ((), logits.shape[1:]):
            raise KitError(f"positive_weight {tuple(positive_weight.shape)}, wanted one, or one per class.")
    targets = targets + smoothing * (1 - 2 * targets)
    return mean_over_known(bce_of_labels(logits, targets, positive_weight), known)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None) -> RowLoss:
    """Cross-entropy times |target - probability|^gamma, and alpha for truth, 1 - alpha for falsehood.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: Lin et al. 2017, arXiv:1708.02002; Li et al. 2020, arXiv:2006.04388, for soft labels
    """
    if gamma != 0 and not gamma >= 1:  # between them the slope at a soft label is infinite
        raise KitError(f"gamma must be 0 or at least 1, got {gamma}.")
    logits, targets, known = widen_for_loss(logits, targets)
    losses = bce_of_labels(logits, targets) * (targets - logits.sigmoid()).abs().pow(gamma)
    if alpha is not None:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return mean_over_known(losses, known)


def soft_bootstrap_loss(
    logits: Tensor, targets: Tensor, trust: float = 0.7, on: str = "known", detach: bool = True
) -> RowLoss:
    """Cross-entropy on trust * label + (1 - trust) * own prediction, for noisy or missing labels.

    On unknown labels, they alone are drawn, from false, and take part in the mean; on all, both are.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: Reed et al. 2014, arXiv:1412.6596; known, .7, detached: first place, Freesound 2019;
            unknown, .1, undetached: 32nd place, RFCX (LSoft with l = .9)
    """
    if not 0 <= trust <= 1:
        raise KitError(f"trust must be in [0, 1], got {trust}.")
    logits, targets, known = widen_for_loss(logits, targets)
    places = {"known": known, "unknown": ~known, "all": torch.ones_like(known)}
    drawn = choose("place to bootstrap on", on, places)
    belief = logits.detach().sigmoid() if detach else logits.sigmoid()
    targets = torch.where(drawn, trust * targets + (1 - trust) * belief, targets)
    return mean_over_known(bce_of_labels(logits, targets), known | drawn)


def mse_loss(logits: Tensor, targets: Tensor) -> RowLoss:
    """Squared error of the probabilities. Shape: logits and targets (B, K) -> RowLoss"""
    logits, targets, known = widen_for_loss(logits, targets)
    return mean_over_known((logits.sigmoid() - targets).square(), known)


def lsep_loss(logits: Tensor, targets: Tensor) -> RowLoss:
    """Log-sum-exp pairwise loss: log(1 + sum over known i, j of max(0, t_i - t_j) exp(s_j - s_i)).

    Scores are ranks, not probabilities: only differences within a clip are trained.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: Li, Song & Luo 2017, arXiv:1704.03135, for hard labels; weighted by the step for soft ones
    """
    logits, targets, known = widen_for_loss(logits, targets)
    n_known = known.sum(dim=1).to(logits.dtype)
    # Sorted by target, the sum over pairs is one over the steps between neighbouring targets: each adds its height
    # times (sum of exp(s) below) times (sum of exp(-s) above): exact in log space, in O(B K) memory.
    order = targets.masked_fill(~known, torch.inf).argsort(dim=1, stable=True)
    scores, levels, known = logits.gather(1, order), targets.gather(1, order), known.gather(1, order)
    below = scores.logcumsumexp(dim=1)
    above = (-scores).masked_fill(~known, NEGLIGIBLE_LOG).flip(1).logcumsumexp(dim=1).flip(1)
    # Unknown labels stand last, as zeros, so nothing steps up to them.
    steps = levels[:, 1:] - levels[:, :-1]
    log_steps = steps.where(steps > 0, 1.0).log().masked_fill(steps <= 0, NEGLIGIBLE_LOG)
    return RowLoss(F.softplus(torch.logsumexp(log_steps + below[:, :-1] + above[:, 1:], dim=1)), n_known)


def mean_over_known(losses: Tensor, known: Tensor) -> RowLoss:
    """A clip's mean over the labels that take part. Shape: two of (B, K) -> RowLoss"""
    n_known = known.sum(dim=1)
    loss = losses.masked_fill(~known, 0.0).sum(dim=1) / n_known.clamp(min=1)
    return RowLoss(loss, n_known.to(losses.dtype))


def widen_for_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float32 (float64 stays), unknown targets as 0, and a mask of the known ones.

    Shape:  logits (B, K), targets (B, K) in [0, 1], NaN where unknown -> three of (B, K)
    """
    shapes = tuple(logits.shape), tuple(targets.shape)
    if logits.ndim != 2 or shapes[0] != shapes[1]:
        raise KitError(f"logits and targets {shapes} must both be (clips, classes).")
    if ((targets < 0) | (targets > 1)).any():
        raise KitError("targets must be in [0, 1], and NaN, not -1, where a label is unknown.")
    dtype, known = torch.promote_types(logits.dtype, torch.float32), ~targets.isnan()
    return logits.to(dtype), targets.to(dtype).masked_fill(~known, 0.0), known


LOSSES: dict[str, RowLossFunction] = {
    "bce": bce_loss, "lsep": lsep_loss, "focal": focal_loss, "bootstrap": soft_bootstrap_loss, "mse": mse_loss
}  # fmt: skip


def outlier_dropping_loss(
    row: RowLoss, suspects: Tensor | None = None, limit: float = 0.8, weights: Tensor | None = None, over: str = "clips"
) -> Tensor:  # fmt: skip
    """A batch loss: the average without the suspected clips that cost over `limit` of the dearest clip's loss.

    Without `suspects` all are, and the dearest goes; where nothing is left it costs 0.

    Shape:  row of (B,), suspects (B,) bool, weights (B,) -> scalar
    Source: tried by the first place, Freesound 2019 (.8, noisy clips suspected); Fonseca et al. 2019, arXiv:1910.12004
    """
    clips = len(row.loss)
    weights = torch.ones_like(row.loss) if weights is None else check_one_per_clip(weights, clips)
    counted = row.loss.detach().masked_fill(weights <= 0, 0.0)
    dropped = counted > limit * F.pad(counted, (0, 1)).max()
    if suspects is not None:
        dropped = dropped & check_one_per_clip(suspects, clips).bool()
    return average_loss(row, weights.masked_fill(dropped, 0.0), over)


def soft_auc_loss(
    logits: Tensor, targets: Tensor, steepness: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """A batch loss: softplus(-steepness * gap) of every true clip over every false one, averaged by class.

    A pair weighs (2 t_i - 1)(1 - 2 t_j); classes with a pair count alike.
    Only differences within a class are trained: ranks, not probabilities.

    Shape:  logits (B, K), targets (B, K) in [0, 1], NaN where unknown; weights of the clips (B,) -> scalar
    Source: BirdCLEF 2025 (SoftAUC; there over all pairs at once, a quarter of this on hard labels)
    """
    logits, targets, known = widen_for_loss(logits, targets)
    surely = (2 * targets - 1).masked_fill(~known, 0.0)
    if weights is not None:
        surely = surely * check_one_per_clip(weights, len(logits)).to(logits.dtype)[:, None]
    clips, classes = (surely > 0).nonzero(as_tuple=True)
    gaps = logits[clips, classes][:, None] - logits.T[classes]
    pairs = surely[clips, classes][:, None] * (-surely).clamp(min=0).T[classes]
    costs = pairs * -F.logsigmoid(steepness * gaps)
    sums = torch.stack([costs.sum(dim=1), pairs.sum(dim=1)])
    cost, weight = sums.new_zeros(2, logits.shape[1]).index_add(1, classes, sums).unbind()
    paired = weight > 0
    return (cost / weight.where(paired, 1.0)).sum() / paired.sum().clamp(min=1)
