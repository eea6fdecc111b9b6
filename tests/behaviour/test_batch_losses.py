"""Losses of whole batches are their definitions, stay finite, and know unknown from false."""

import math

import pytest
import torch

from kit.core.errors import KitError
from kit.train.losses import LOSSES, RowLoss, average_loss, bce_loss, outlier_dropping_loss, soft_auc_loss

SOME = torch.linspace(0.0, 2.0, 20, dtype=torch.float64)


def draw(kind="soft", n=20, n_classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    targets = torch.rand(n, n_classes, generator=generator, dtype=torch.float64)
    if kind == "hard":
        targets = (targets < 0.3).double()
    if kind == "steps":
        targets = (targets * 4).round() / 4
    targets[torch.rand(n, n_classes, generator=generator) < 0.3] = math.nan
    targets[:, 0], targets[:, 1], targets[:, 2], targets[0] = 0.0, 1.0, math.nan, math.nan
    targets[:, 3] = math.nan
    targets[1:3, 3] = torch.tensor([1.0, 0.0])
    return logits, targets


def slow_soft_auc(logits, targets, steepness=1.0, weights=None):
    """Definition: for each class every surely true clip against every surely false one."""
    weights = [1.0] * len(logits) if weights is None else weights.tolist()
    means = []
    for scores, labels in zip(logits.T.tolist(), targets.T.tolist(), strict=True):
        cost = total = 0.0
        for i, high in enumerate(labels):
            for j, low in enumerate(labels):
                if high > 0.5 and low < 0.5:
                    weight = weights[i] * weights[j] * (2 * high - 1) * (1 - 2 * low)
                    cost += weight * math.log1p(math.exp(-steepness * (scores[i] - scores[j])))
                    total += weight
        if total > 0:
            means.append(cost / total)
    return sum(means) / len(means) if means else 0.0


@pytest.mark.parametrize("kind", ["hard", "soft", "steps"])
@pytest.mark.parametrize(("steepness", "weights"), [(1.0, None), (0.3, SOME)])
def test_soft_auc_agrees_with_its_definition(kind, steepness, weights):
    logits, targets = draw(kind)
    got = soft_auc_loss(logits, targets, steepness, weights)
    assert got.shape == () and got.item() == pytest.approx(slow_soft_auc(logits, targets, steepness, weights))
    narrow = soft_auc_loss(logits.float(), targets.float(), steepness, weights)
    assert narrow.dtype == torch.float32 and narrow.item() == pytest.approx(got.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft", "steps"])
def test_the_gradient_of_soft_auc_agrees_with_finite_differences(kind):
    logits, targets = draw(kind, n=7, n_classes=5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_auc_loss(x, targets, 0.7, SOME[:7]), logits)


@pytest.mark.parametrize("kind", ["hard", "soft", "steps"])
def test_an_unknown_or_undecided_label_has_no_part_in_soft_auc(kind):
    logits, targets = draw(kind)
    logits.requires_grad_()
    loss = soft_auc_loss(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    idle = targets.isnan() | (targets == 0.5)
    assert (gradient[idle] == 0).all() and (gradient[:, :3] == 0).all() and (gradient[1:3, 3] != 0).all()
    moved = torch.where(idle, logits.detach() - 40, logits.detach())
    torch.testing.assert_close(soft_auc_loss(moved, targets), loss, rtol=1e-14, atol=0)
    paired = torch.arange(6) > 2
    torch.testing.assert_close(soft_auc_loss(logits[:, paired], targets[:, paired]), loss)


def test_soft_auc_feels_only_differences_within_a_class():
    logits, targets = draw()
    levels = torch.linspace(-5, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(soft_auc_loss(logits + levels, targets), soft_auc_loss(logits, targets))


def test_steep_soft_auc_counts_the_pairs_in_the_wrong_order():
    """At equal gaps of 1 each wrong pair costs the steepness and each right one nothing: 1 - AUC."""
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    targets = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [math.nan, math.nan]], dtype=torch.float64)
    assert soft_auc_loss(logits, targets, 500.0).item() / 500 == pytest.approx(0.5)


def test_all_classes_at_once_are_one_class():
    logits, targets = (x.reshape(-1, 1) for x in draw())
    assert soft_auc_loss(logits, targets).item() == pytest.approx(slow_soft_auc(logits, targets))


def test_the_order_of_clips_and_classes_changes_no_batch_loss():
    logits, targets = draw()
    clips = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for loss in (soft_auc_loss, lambda s, t: outlier_dropping_loss(bce_loss(s, t))):
        turned = loss(logits[clips].flip(1), targets[clips].flip(1))
        torch.testing.assert_close(turned, loss(logits, targets), rtol=1e-12, atol=0)


def test_soft_auc_keeps_no_more_than_true_labels_times_clips():
    logits = torch.zeros(512, 200, requires_grad=True)
    targets = torch.zeros(512, 200)
    targets[torch.arange(512), torch.arange(512) % 200] = 1.0
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = soft_auc_loss(logits, targets)
    assert loss.item() == pytest.approx(math.log(2)) and max(kept) <= 512 * 512


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["hard", "soft", "steps"])
def test_batch_losses_stay_finite_at_huge_logits(dtype, kind):
    _, targets = draw(kind)
    generator = torch.Generator().manual_seed(1)
    losses = [soft_auc_loss, *(lambda s, t, f=f: outlier_dropping_loss(f(s, t)) for f in LOSSES.values())]
    for size in (0.0, 15.0, 1e4):
        signs = torch.randint(-1, 2, targets.shape, generator=generator)
        for function in losses:
            logits = (size * signs).to(dtype).requires_grad_()
            loss = function(logits, targets.float())
            assert loss.dtype == torch.float32 and loss.isfinite() and loss >= 0
            loss.backward()
            assert logits.grad.isfinite().all() and (logits.grad.abs() <= 1).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (3, 1), (3, 5)])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, math.nan])
def test_a_batch_with_nothing_to_compare_costs_nothing(shape, value):
    logits = torch.randn(shape, requires_grad=True)
    loss = soft_auc_loss(logits, torch.full(shape, value))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    if value != value or 0 in shape:
        assert outlier_dropping_loss(bce_loss(logits, torch.full(shape, value))) == 0


@pytest.mark.parametrize("over", ["clips", "labels"])
@pytest.mark.parametrize("weights", [None, SOME])
@pytest.mark.parametrize("limit", [0.5, 0.8, 1.0])
def test_the_dearest_of_the_suspects_are_left_out(over, weights, limit):
    logits, targets = draw()
    row = bce_loss(logits, targets)
    suspects = torch.arange(20) % 3 > 0
    heard = [i for i in range(20) if weights is None or weights[i] > 0]
    dearest = max(row.loss[i].item() for i in heard)
    left = [i for i in heard if not suspects[i] or row.loss[i].item() <= limit * dearest]
    shares = [
        (1.0 if weights is None else weights[i].item())
        * (row.known[i].item() if over == "labels" else float(row.known[i] > 0))
        for i in left
    ]
    slow = sum(w * row.loss[i].item() for w, i in zip(shares, left, strict=True)) / sum(shares)
    got = outlier_dropping_loss(row, suspects, limit, weights, over)
    assert got.shape == () and got.item() == pytest.approx(slow)
    assert limit == 1.0 or len(left) < len(heard)


def test_a_dropped_clip_is_not_learned_from_and_a_trusted_one_is():
    losses = torch.tensor([1.0, 9.0, 10.0, 8.0], requires_grad=True)
    row = RowLoss(losses, torch.ones(4))
    outlier_dropping_loss(row).backward()
    assert losses.grad.tolist() == [0.5, 0, 0, 0.5]
    losses.grad = None
    outlier_dropping_loss(row, torch.tensor([True, True, False, True])).backward()
    assert losses.grad.tolist() == [pytest.approx(x) for x in (1 / 3, 0, 1 / 3, 1 / 3)]
    assert outlier_dropping_loss(row, torch.zeros(4, dtype=torch.bool)) == average_loss(row)


def test_a_clip_without_weight_sets_no_limit():
    row = RowLoss(torch.tensor([1.0, 5.0, 100.0]), torch.ones(3))
    assert outlier_dropping_loss(row, weights=torch.tensor([1.0, 1.0, 0.0])) == 1.0


def test_the_gradient_of_the_rest_agrees_with_finite_differences():
    logits, targets = draw(n=6, n_classes=4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: outlier_dropping_loss(bce_loss(x, targets)), logits)


def test_shapes_that_would_broadcast_are_refused_for_a_batch():
    logits, targets = draw()
    row = bce_loss(logits, targets)
    for wrong in (torch.ones(20, 1), torch.ones(1), torch.ones(19)):
        with pytest.raises(KitError, match="20 clips"):
            outlier_dropping_loss(row, suspects=wrong)
        with pytest.raises(KitError, match="20 clips"):
            outlier_dropping_loss(row, weights=wrong)
        with pytest.raises(KitError, match="20 clips"):
            soft_auc_loss(logits, targets, weights=wrong)
    with pytest.raises(KitError, match=r"\(20, 6\)"):
        soft_auc_loss(logits, targets[:, :1])
