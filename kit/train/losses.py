'''Losses of logits and targets, one number per clip; unknown labels (NaN) are masked.'''

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kit.core.errors import KitError, choose

NEGLIGIBLE_LOG = -1e9
# Pairs of labels that are in memory at once: four arrays of 16 MB in float32.
PAIRS_AT_ONCE = 2**22


class RowLoss(NamedTuple):
    '''Each clip's loss, 0 for a clip without labels, and `known`, the number of labels that took part.

    Shape:  (B,) each, float32 or wider
    '''

    loss: Tensor
    known: Tensor


RowLossFunction = Callable[[Tensor, Tensor], RowLoss]


class CoordinateLoss(nn.Module):
    '''The squared error of each row's place in frequency, 0 to 1, as a linear layer reads it from a feature map.

    Shape:  (B, D, M', N') -> scalar
    Source: advice to the second place, RFCX (it makes a network use its frequency coordinate)
    '''

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise KitError('the feature map has no rows of frequency: set coordinate_weight=0.')
        predicted = torch.einsum('bdmn,d->bnm', x.float(), self.weight) + self.bias
        return (predicted - torch.linspace(0, 1, x.shape[2], device=x.device)).square().mean()


def average_loss(row: RowLoss, weights: Tensor | None = None, over: str = 'clips') -> Tensor:
    '''Average the losses of a batch over its clips with a known label, or over its known labels.

    Shape:  row of (B,), weights of the clips (B,) -> scalar, 0 where nothing is known
    '''
    has_label = (row.known > 0).to(row.loss.dtype)
    count = has_label if over == 'clips' else row.known
    if weights is not None:
        count = count * weights
    total = count.sum()
    return (row.loss * count).sum() / total.where(total > 0, 1.0)


def sum_by_source(
    logits: Tensor,
    targets: Tensor,
    sources: Tensor,
    parts: Sequence[tuple[RowLossFunction, float]],
    weights: Tensor | None = None,
    over: str = 'clips',
    weight_by_share: bool = True,
) -> Tensor:
    '''Sum the average losses of the sources, each by its own loss function and times its own weight.

    With `weight_by_share` each average is also multiplied by the source's share of the batch's clips.

    Shape:  logits and targets (B, K), sources (B,) indices of parts, weights of the clips (B,) -> scalar
    Source: first place, Freesound 2019 (curated: BCE, noisy: soft bootstrapping, weight .5 each, by share)
    '''
    terms = []
    for index, (loss, source_weight) in enumerate(parts):
        rows = sources == index
        row_weights = None if weights is None else weights[rows]
        average = average_loss(loss(logits[rows], targets[rows]), row_weights, over)
        share = rows.sum() / max(1, len(rows)) if weight_by_share else 1.0
        terms.append(source_weight * share * average)
    return torch.stack(terms).sum()


def bce_of_labels(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    '''Compute the binary cross-entropy of each label. Shape: two of (B, K) -> (B, K)'''
    return F.binary_cross_entropy_with_logits(logits, targets, reduction='none', pos_weight=positive_weight)


def bce_loss(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, positive_weight: Tensor | float | None = None
) -> RowLoss:
    '''Compute binary cross-entropy. Smoothing moves the targets 0 and 1 to `smoothing` and 1 - `smoothing`.

    Shape:  logits and targets (B, K), positive_weight () or (K,) -> RowLoss
    Source: smoothing .01: second place, Freesound 2019
    '''
    if not 0 <= smoothing < 0.5:
        raise KitError(f'smoothing must be in [0, 0.5), got {smoothing}.')
    logits, targets, known = widen_for_loss(logits, targets)
    if positive_weight is not None:
        positive_weight = torch.as_tensor(positive_weight).to(logits)
        if positive_weight.shape not in ((), logits.shape[1:]):
            raise KitError(f'positive_weight {tuple(positive_weight.shape)}, wanted one, or one per class.')
    targets = targets + smoothing * (1 - 2 * targets)
    return mean_over_known(bce_of_labels(logits, targets, positive_weight), known)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None) -> RowLoss:
    '''Compute focal loss: cross-entropy times |target - probability|^gamma; easy labels weigh little.

    With `alpha`, true labels also weigh alpha and false ones 1 - alpha.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: Lin et al. 2017, arXiv:1708.02002; Li et al. 2020, arXiv:2006.04388, for soft labels
    '''
    # Between 0 and 1 the gradient at a soft label would be infinite.
    if gamma != 0 and not gamma >= 1:
        raise KitError(f'gamma must be 0 or at least 1, got {gamma}.')
    logits, targets, known = widen_for_loss(logits, targets)
    losses = bce_of_labels(logits, targets) * (targets - logits.sigmoid()).abs().pow(gamma)
    if alpha is not None:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return mean_over_known(losses, known)


def soft_bootstrap_loss(
    logits: Tensor, targets: Tensor, trust: float = 0.7, on: str = 'known', detach: bool = True
) -> RowLoss:
    '''Compute cross-entropy on trust * label + (1 - trust) * the network's own prediction.

    `on` selects the labels that change: "known", "unknown" or "all". Selected unknown ones count, as false before.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: Reed et al. 2014, arXiv:1412.6596; known, .7, detached: first place, Freesound 2019;
            unknown, .1, not detached: 32nd place, RFCX (LSoft with l = .9)
    '''
    if not 0 <= trust <= 1:
        raise KitError(f'trust must be in [0, 1], got {trust}.')
    logits, targets, known = widen_for_loss(logits, targets)
    selected = choose('place to bootstrap on', on, {'known': known, 'unknown': ~known, 'all': torch.ones_like(known)})
    probs = logits.detach().sigmoid() if detach else logits.sigmoid()
    targets = torch.where(selected, trust * targets + (1 - trust) * probs, targets)
    return mean_over_known(bce_of_labels(logits, targets), known | selected)


def lsep_loss(logits: Tensor, targets: Tensor) -> RowLoss:
    '''Compute log-sum-exp pairwise loss: log(1 + sum over known i, j of max(0, t_i - t_j) exp(s_j - s_i)).

    It compares the scores s of a clip's classes, so it trains a ranking: they are no log odds.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: Li, Song & Luo 2017, arXiv:1704.03135, for hard labels; soft labels weigh pairs by t_i - t_j
    '''
    logits, targets, known = widen_for_loss(logits, targets)
    n_known = known.sum(dim=1).to(logits.dtype)
    # The pairs need O(K^2) memory. Sorted by target, they need O(K): the difference t_i - t_j is the sum of the steps
    # between neighbouring targets from j up to i. So the sum over pairs is a sum over steps: each step times the sum of
    # exp(s) of the labels below it times the sum of exp(-s) of those above. In log space it is exact.
    order = targets.masked_fill(~known, torch.inf).argsort(dim=1, stable=True)
    scores, sorted_targets, sorted_known = (x.gather(1, order) for x in (logits, targets, known))
    log_below = scores.logcumsumexp(dim=1)
    negative_scores = (-scores).masked_fill(~sorted_known, NEGLIGIBLE_LOG)
    log_above = negative_scores.flip(1).logcumsumexp(dim=1).flip(1)
    # Unknown labels are last, with targets of 0: the step to them is never positive and is masked.
    steps = sorted_targets[:, 1:] - sorted_targets[:, :-1]
    is_step = steps > 0
    log_steps = steps.where(is_step, 1.0).log().masked_fill(~is_step, NEGLIGIBLE_LOG)
    return RowLoss(F.softplus(torch.logsumexp(log_steps + log_below[:, :-1] + log_above[:, 1:], dim=1)), n_known)


def soft_auc_loss(logits: Tensor, targets: Tensor, bce: float = 0.0) -> RowLoss:
    '''Compute the mean of log(1 + exp(s_j - s_i)) over all pairs of a true label i and a false one j of the batch.

    Labels above .5 are true, those below false, of any clips and classes. A pair's loss is multiplied by both labels'
    distances from .5. Each of its two clips gets half, scaled: the mean over the clips with a known label is the mean
    over the pairs. `bce` times the binary cross-entropy is added: else classes without true labels may collapse.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: fourth place, BirdCLEF 2025; with bce .25: second place, BirdCLEF 2026
    '''
    cross_entropy = bce_loss(logits, targets)
    logits, targets, known = widen_for_loss(logits, targets)
    distances = (targets - 0.5).masked_fill(~known, 0.0)
    is_true, is_false = distances > 0, distances < 0
    true, true_weights = logits[is_true], distances[is_true]
    false, false_weights = logits[is_false], -distances[is_false]
    by_true = [true[:0]]
    by_false = torch.zeros_like(false)
    step = max(1, PAIRS_AT_ONCE // max(1, len(false)))
    for first in range(0, len(true), step):
        chunk = slice(first, first + step)
        inputs = true[chunk], false, true_weights[chunk], false_weights
        # Kept for the backward pass, all pairs would need O((B K)^2) memory: it computes each chunk again.
        sums = checkpoint(sum_pairs, *inputs, use_reentrant=False, preserve_rng_state=False)
        by_true.append(sums[0])
        by_false = by_false + sums[1]
    shares = torch.zeros_like(logits).masked_scatter(is_false, by_false)
    shares = shares.masked_scatter(is_true, torch.cat(by_true))
    loss = shares.sum(dim=1) * known.any(dim=1).sum() / (2 * max(1, len(true) * len(false)))
    return RowLoss(loss + bce * cross_entropy.loss, cross_entropy.known)


def sum_pairs(true: Tensor, false: Tensor, true_weights: Tensor, false_weights: Tensor) -> list[Tensor]:
    '''Sum the weighted losses of all pairs by true and by false label. Shape: (P,), (N,), (P,), (N,) -> (P,), (N,)'''
    losses = F.softplus(false - true[:, None]) * true_weights[:, None] * false_weights
    return [losses.sum(dim=1), losses.sum(dim=0)]


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> RowLoss:
    '''Compute the cross-entropy of the softmax over a clip's known labels; the targets are divided by their sum.

    A clip without a true label has the loss 0. It compares a clip's classes, so it trains a ranking.

    Shape:  logits and targets (B, K) -> RowLoss
    Source: first place, BirdCLEF 2024 and 2026
    '''
    logits, targets, known = widen_for_loss(logits, targets)
    log_probs = logits.masked_fill(~known, NEGLIGIBLE_LOG).log_softmax(dim=1).masked_fill(~known, 0.0)
    total = targets.sum(dim=1, keepdim=True)
    shares = targets / total.where(total > 0, 1.0)
    return RowLoss(-(shares * log_probs).sum(dim=1), known.sum(dim=1).to(logits.dtype))


def mean_over_known(losses: Tensor, known: Tensor) -> RowLoss:
    '''Average each clip's losses over the labels that take part. Shape: losses and mask (B, K)'''
    n_known = known.sum(dim=1)
    return RowLoss(losses.masked_fill(~known, 0.0).sum(dim=1) / n_known.clamp(min=1), n_known.to(losses.dtype))


def widen_for_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    '''Convert both to float32 or wider, unknown targets to 0; return the mask of known ones.'''
    if ((targets < 0) | (targets > 1)).any():
        raise KitError('targets must be in [0, 1], and NaN, not -1, where a label is unknown.')
    dtype = torch.promote_types(logits.dtype, torch.float32)
    known = ~targets.isnan()
    return logits.to(dtype), targets.to(dtype).masked_fill(~known, 0.0), known


LOSSES: dict[str, RowLossFunction] = {
    'bce': bce_loss,
    'lsep': lsep_loss,
    'focal': focal_loss,
    'bootstrap': soft_bootstrap_loss,
    'soft-auc': soft_auc_loss,
    'cross-entropy': cross_entropy_loss,
}
