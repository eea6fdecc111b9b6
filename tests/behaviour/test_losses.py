"""Losses are their definitions, stay finite, and never take an unknown label for a false one."""

import math

import numpy as np
import pytest
import torch

from kit.core.errors import KitError
from kit.learn.losses import LOSSES, bce_loss, lsep_loss


def slow_bce(scores, targets):
    """Definition: minus the mean log likelihood of the known labels."""
    terms = [
        t * math.log1p(math.exp(-s)) + (1 - t) * math.log1p(math.exp(s))
        for s, t in zip(scores, targets, strict=True)
        if not math.isnan(t)
    ]
    return sum(terms) / len(terms) if terms else 0.0


def slow_lsep(scores, targets):
    """Definition: a double loop over pairs; a comparison with NaN is false, which leaves it out."""
    pairs = [
        (targets[i] - targets[j]) * math.exp(scores[j] - scores[i])
        for i in range(len(scores))
        for j in range(len(scores))
        if targets[i] > targets[j]
    ]
    return math.log1p(sum(pairs))


SLOW = {"bce": slow_bce, "lsep": slow_lsep}
KINDS = ("hard", "soft", "steps")


def draw(kind, unknown=0.3, n=24, n_classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    targets = torch.rand(n, n_classes, generator=generator, dtype=torch.float64)
    if kind == "hard":
        targets = (targets < 0.3).double()
    if kind == "steps":
        targets = (targets * 4).round() / 4
    targets[torch.rand(n, n_classes, generator=generator) < unknown] = math.nan
    targets[0], targets[1], targets[2] = math.nan, 0.0, 1.0
    targets[3, 1:] = math.nan
    return logits, targets


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_agrees_with_its_definition(name, kind):
    logits, targets = draw(kind)
    expected = [SLOW[name](s, t) for s, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    got = LOSSES[name](logits, targets)
    assert got.shape == (len(logits),) and got.dtype == torch.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    narrow = LOSSES[name](logits.float(), targets.float())
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_agrees_with_finite_differences(name, kind):
    logits, targets = draw(kind)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, targets), logits.requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_lsep_agrees_with_the_pairs(kind):
    logits, targets = draw(kind)
    logits.requires_grad_()
    pairs = (targets[:, :, None] - targets[:, None, :]).nan_to_num(0.0).clamp(min=0)
    slow = (pairs * (logits[:, None, :] - logits[:, :, None]).exp()).sum((1, 2)).log1p()
    weights = torch.arange(1.0, 1 + len(logits), dtype=torch.float64)
    (expected,) = torch.autograd.grad((weights * slow).sum(), logits)
    (got,) = torch.autograd.grad((weights * lsep_loss(logits, targets)).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_label_moves_nothing(name, kind):
    logits, targets = draw(kind)
    unknown = targets.isnan()
    logits.requires_grad_()
    loss = LOSSES[name](logits, targets)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[unknown] == 0).all()
    moved = torch.where(unknown, logits.detach() + 50, logits.detach())
    assert torch.equal(LOSSES[name](moved, targets), loss)
    for row in range(4, 10):
        known = ~unknown[row]
        alone = LOSSES[name](logits[row : row + 1, known], targets[row : row + 1, known])
        torch.testing.assert_close(alone[0], loss[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_clip_without_known_labels_costs_and_moves_nothing(name):
    logits = torch.randn(3, 5, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((3, 5), math.nan))
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("row", [[0.0] * 4, [1.0] * 4, [0.4] * 4, [math.nan, 1, 1, math.nan], [1.0], [0.0]])
def test_a_clip_without_a_pair_has_nothing_to_rank(row):
    for size in (1.0, 1e4):
        logits = (size * torch.linspace(-1, 1, len(row))[None]).requires_grad_()
        loss = lsep_loss(logits, torch.tensor([row]))
        loss.sum().backward()
        assert loss.tolist() == [0] and (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_stay_finite_at_huge_logits(name, dtype, kind):
    _, targets = draw(kind, n=64, n_classes=80)
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 1.0, 15.0, 100.0, 1e4):
        signs = torch.randint(-1, 2, targets.shape, generator=generator)
        logits = (size * signs).to(dtype).requires_grad_()
        loss = LOSSES[name](logits, targets.float())
        assert loss.dtype == torch.float32 and loss.isfinite().all() and (loss >= 0).all()
        loss.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad.abs() <= 1).all()


def test_losses_at_huge_logits_have_the_right_value_and_slope():
    logits = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, math.nan]])
    loss = lsep_loss(logits, targets)
    loss.sum().backward()
    assert loss.item() == 2e4 and logits.grad.tolist() == [[-1, 1, 0]]
    logits.grad = None
    loss = bce_loss(logits, targets)
    loss.sum().backward()
    assert loss.item() == 1e4 and logits.grad.tolist() == [[-0.5, 0.5, 0]]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_under_autocast_are_the_same(name):
    logits, targets = draw("soft")
    logits = (30 * logits).float()
    plain = LOSSES[name](logits, targets.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](logits, targets.float()), plain)


@pytest.mark.parametrize("name", LOSSES)
def test_a_clip_costs_the_same_beside_any_other(name):
    logits, targets = draw("soft")
    whole = LOSSES[name](logits, targets)
    torch.testing.assert_close(LOSSES[name](logits[5:6], targets[5:6]), whole[5:6], rtol=1e-14, atol=0)


def test_lsep_feels_only_differences_of_scores():
    logits, targets = draw("soft")
    torch.testing.assert_close(lsep_loss(logits + 7.5, targets), lsep_loss(logits, targets))


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name):
    for shape in [(4, 1), (1, 3), (3,), (4, 3, 1)]:
        with pytest.raises(KitError, match=r"\(4, 3\)"):
            LOSSES[name](torch.zeros(4, 3), torch.zeros(shape))
