"""Logits and targets with unknown labels in, one loss per clip out."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.errors import KitError

NEGLIGIBLE_LOG = -1e9


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the clip's known labels; a clip without any costs 0.

    Shape:  logits (B, K), targets (B, K) in [0, 1], NaN where unknown -> loss (B,), float32 or wider
    """
    logits, targets, known = widen_for_loss(logits, targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.masked_fill(~known, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def lsep_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-sum-exp pairwise loss: log(1 + sum over known i, j of max(0, t_i - t_j) exp(s_j - s_i)).

    Sorted by target, the sum over pairs is one over the steps between neighbouring targets: each
    adds its height times (sum of exp(s) below) times (sum of exp(-s) above). All terms are positive,
    so log-space sums keep it exact, in O(B K) memory. Only the scores' differences within a clip
    are trained: they are ranks, not probabilities. A clip without a pair costs 0.

    Shape:  logits (B, K), targets (B, K) in [0, 1], NaN where unknown -> loss (B,), float32 or wider
    Source: Li, Song & Luo 2017, arXiv:1704.03135, for hard labels; weighted by the step for soft ones
    """
    logits, targets, known = widen_for_loss(logits, targets)
    if logits.shape[1] < 2:
        return logits.sum(dim=1) * 0.0
    order = targets.masked_fill(~known, torch.inf).argsort(dim=1, stable=True)
    scores, levels, known = logits.gather(1, order), targets.gather(1, order), known.gather(1, order)
    below = scores.logcumsumexp(dim=1)
    above = (-scores).masked_fill(~known, NEGLIGIBLE_LOG).flip(1).logcumsumexp(dim=1).flip(1)
    # Unknown labels stand last, as zeros: nothing steps up to them, so `below` never holds one.
    steps = levels[:, 1:] - levels[:, :-1]
    log_steps = steps.where(steps > 0, 1.0).log().masked_fill(steps <= 0, NEGLIGIBLE_LOG)
    return F.softplus(torch.logsumexp(log_steps + below[:, :-1] + above[:, 1:], dim=1))


def widen_for_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float32 (float64 stays), unknown targets as 0, and a mask of the known ones.

    Shape:  logits (B, K), targets (B, K) -> three of (B, K)
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise KitError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must both be (clips, classes): "
            "mark labels that are not known with NaN rather than leaving columns out."
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    known = ~targets.isnan()
    return logits.to(dtype), targets.to(dtype).masked_fill(~known, 0.0), known


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce_loss, "lsep": lsep_loss}
