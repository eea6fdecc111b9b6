"""A whole batch's logits, targets or clip losses in, one scalar out: what no clip can say alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.learn.losses import RowLoss, average_loss, check_one_per_clip, widen_for_loss


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
