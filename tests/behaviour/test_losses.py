"""Losses are their definitions, stay finite, and never take an unknown label for a false one."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from kit.core.errors import KitError
from kit.train.losses import (
    LOSSES,
    RowLoss,
    average_loss,
    bce_loss,
    focal_loss,
    lsep_loss,
    mse_loss,
    soft_bootstrap_loss,
    sum_by_source,
)

POSITIVE = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0, 10.0, 4.0], dtype=torch.float64)


def probability(score):
    return 1 / (1 + math.exp(-score))


def entropy_of(score, target):
    """Minus the log likelihood of a target that is true with probability `target`."""
    return target * math.log1p(math.exp(-score)) + (1 - target) * math.log1p(math.exp(score))


def mean(terms):
    return sum(terms) / len(terms) if terms else 0.0


def by_label(term):
    """A definition as the mean of term(score, target, class) over the known labels."""

    def slow(scores, targets):
        labels = enumerate(zip(scores, targets, strict=True))
        return mean([term(s, t, k) for k, (s, t) in labels if not math.isnan(t)])

    return slow


def smooth_weighted_term(score, target, k):
    target = 0.99 * target + 0.01 * (1 - target)
    truth, falsehood = entropy_of(score, 1.0), entropy_of(score, 0.0)
    return float(POSITIVE[k]) * target * truth + (1 - target) * falsehood


def focal_term(score, target, gamma, alpha=None):
    weight = 1.0 if alpha is None else target * alpha + (1 - target) * (1 - alpha)
    return weight * abs(target - probability(score)) ** gamma * entropy_of(score, target)


def bootstrap_term(score, target, trust=0.7):
    return entropy_of(score, trust * target + (1 - trust) * probability(score))


def slow_unknown_bootstrap(scores, targets, trust=0.1):
    """Known labels as they are; an unknown one is false, believed to be what the model says."""
    terms = [
        bootstrap_term(s, 0.0, trust) if math.isnan(t) else entropy_of(s, t)
        for s, t in zip(scores, targets, strict=True)
    ]
    return mean(terms)


def slow_lsep(scores, targets):
    """Definition: a double loop over pairs; a comparison with NaN is false, which leaves it out."""
    pairs = [
        (targets[i] - targets[j]) * math.exp(scores[j] - scores[i])
        for i in range(len(scores))
        for j in range(len(scores))
        if targets[i] > targets[j]
    ]
    return math.log1p(sum(pairs))


CASES = {
    "bce": (bce_loss, by_label(lambda s, t, k: entropy_of(s, t))),
    "lsep": (lsep_loss, slow_lsep),
    "focal": (focal_loss, by_label(lambda s, t, k: focal_term(s, t, 2.0))),
    "bootstrap": (soft_bootstrap_loss, by_label(lambda s, t, k: bootstrap_term(s, t))),
    "mse": (mse_loss, by_label(lambda s, t, k: (probability(s) - t) ** 2)),
    "bce smooth": (
        partial(bce_loss, smoothing=0.01, positive_weight=POSITIVE),
        by_label(smooth_weighted_term),
    ),
    "focal alpha": (
        partial(focal_loss, gamma=1.5, alpha=0.25),
        by_label(lambda s, t, k: focal_term(s, t, 1.5, 0.25)),
    ),
    "focal 0": (partial(focal_loss, gamma=0.0), by_label(lambda s, t, k: entropy_of(s, t))),
    "bootstrap attached": (
        partial(soft_bootstrap_loss, detach=False),
        by_label(lambda s, t, k: bootstrap_term(s, t)),
    ),
}
GUESSING = {
    "unknown": (
        partial(soft_bootstrap_loss, trust=0.1, on="unknown", detach=False),
        slow_unknown_bootstrap,
    ),
    "all": (
        partial(soft_bootstrap_loss, trust=0.6, on="all", detach=False),
        lambda scores, targets: mean(
            [
                bootstrap_term(s, 0.0 if math.isnan(t) else t, 0.6)
                for s, t in zip(scores, targets, strict=True)
            ]
        ),
    ),
}
EVERY = {**CASES, **GUESSING}
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


def test_every_named_loss_is_tested():
    assert all(CASES[name][0] is LOSSES[name] for name in LOSSES)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_agrees_with_its_definition(name, kind):
    logits, targets = draw(kind)
    loss, slow = EVERY[name]
    expected = [slow(s, t) for s, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    got = loss(logits, targets)
    assert got.loss.shape == (len(logits),) and got.loss.dtype == got.known.dtype == torch.float64
    np.testing.assert_allclose(got.loss, expected, rtol=1e-12, atol=1e-12)
    narrow = loss(logits.float(), targets.float())
    assert narrow.loss.dtype == narrow.known.dtype == torch.float32
    np.testing.assert_allclose(narrow.loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_says_how_many_labels_took_part(name):
    logits, targets = draw("hard")
    counts = [7 if name in GUESSING else sum(not math.isnan(t) for t in row) for row in targets.tolist()]
    row = EVERY[name][0](logits.requires_grad_(), targets)
    assert row.known.tolist() == counts and not row.known.requires_grad


@pytest.mark.parametrize("name", [name for name in EVERY if name != "bootstrap"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_agrees_with_finite_differences(name, kind):
    logits, targets = draw(kind)
    assert torch.autograd.gradcheck(lambda x: EVERY[name][0](x, targets).loss, logits.requires_grad_())


@pytest.mark.parametrize("on", ["known", "unknown", "all"])
def test_a_detached_belief_is_a_target_like_any_other(on):
    logits, targets = draw("soft")
    logits.requires_grad_()
    drawn = {"known": ~targets.isnan(), "unknown": targets.isnan(), "all": torch.ones_like(targets).bool()}
    believed = 0.7 * targets.nan_to_num(0.0) + 0.3 * logits.detach().sigmoid()
    row = soft_bootstrap_loss(logits, targets, on=on)
    plain = bce_loss(logits, torch.where(drawn[on], believed, targets))
    torch.testing.assert_close(row.loss, plain.loss)
    grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (row.loss, plain.loss)]
    torch.testing.assert_close(*grads)


def test_full_trust_needs_no_belief():
    logits, targets = draw("soft")
    assert torch.equal(soft_bootstrap_loss(logits, targets, trust=1.0).loss, bce_loss(logits, targets).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_lsep_agrees_with_the_pairs(kind):
    logits, targets = draw(kind)
    logits.requires_grad_()
    pairs = (targets[:, :, None] - targets[:, None, :]).nan_to_num(0.0).clamp(min=0)
    slow = (pairs * (logits[:, None, :] - logits[:, :, None]).exp()).sum((1, 2)).log1p()
    weights = torch.arange(1.0, 1 + len(logits), dtype=torch.float64)
    (expected,) = torch.autograd.grad((weights * slow).sum(), logits)
    (got,) = torch.autograd.grad((weights * lsep_loss(logits, targets).loss).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_label_moves_nothing(name, kind):
    logits, targets = draw(kind)
    loss, unknown = CASES[name][0], targets.isnan()
    logits.requires_grad_()
    losses = loss(logits, targets).loss
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (gradient[unknown] == 0).all()
    moved = torch.where(unknown, logits.detach() + 50, logits.detach())
    assert torch.equal(loss(moved, targets).loss, losses)


@pytest.mark.parametrize("name", [name for name in CASES if name != "bce smooth"])
def test_a_clip_costs_the_same_without_its_unknown_labels(name):
    logits, targets = draw("steps")
    losses = CASES[name][0](logits, targets).loss
    for row in range(4, 10):
        known = ~targets[row].isnan()
        alone = CASES[name][0](logits[row : row + 1, known], targets[row : row + 1, known]).loss
        torch.testing.assert_close(alone[0], losses[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_clip_without_known_labels_costs_and_moves_nothing(name):
    logits = torch.randn(3, 7, requires_grad=True)
    row = CASES[name][0](logits, torch.full((3, 7), math.nan))
    assert row.loss.tolist() == [0, 0, 0] and row.known.tolist() == [0, 0, 0]
    average = average_loss(row)
    average.backward()
    assert average == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (0, 1)])
def test_a_loss_of_nothing_is_nothing(name, shape):
    logits = torch.zeros(shape, requires_grad=True)
    row = LOSSES[name](logits, torch.zeros(shape))
    assert row.loss.tolist() == [0] * shape[0] and row.known.tolist() == [0] * shape[0]
    for over in ("clips", "labels"):
        average = average_loss(LOSSES[name](logits, torch.zeros(shape)), over=over)
        average.backward()
        assert average == 0 and logits.grad.shape == shape


@pytest.mark.parametrize("row", [[0.0] * 4, [1.0] * 4, [0.4] * 4, [math.nan, 1, 1, math.nan], [1.0], [0.0]])
def test_a_clip_without_a_pair_has_nothing_to_rank(row):
    for size in (1.0, 1e4):
        logits = (size * torch.linspace(-1, 1, len(row))[None]).requires_grad_()
        loss = lsep_loss(logits, torch.tensor([row])).loss
        loss.sum().backward()
        assert loss.tolist() == [0] and (logits.grad == 0).all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_stay_finite_at_huge_logits(name, dtype, kind):
    _, targets = draw(kind, n=64, n_classes=7 if name == "bce smooth" else 80)
    steepest = {"bce smooth": float(POSITIVE.max()), "focal": 1.2, "focal alpha": 1.2}.get(name, 1 + 1e-5)
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 1.0, 15.0, 100.0, 1e4):
        signs = torch.randint(-1, 2, targets.shape, generator=generator)
        logits = (size * signs).to(dtype).requires_grad_()
        loss = EVERY[name][0](logits, targets.float()).loss
        assert loss.dtype == torch.float32 and loss.isfinite().all() and (loss >= 0).all()
        loss.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad.abs() <= steepest).all()


@pytest.mark.parametrize(
    ("name", "cost", "slope"),
    [
        ("lsep", 2e4, [-1, 1, 0]),
        ("bce", 1e4, [-0.5, 0.5, 0]),
        ("focal", 1e4, [-0.5, 0.5, 0]),
        ("bootstrap", 7e3, [-0.35, 0.35, 0]),
        ("mse", 1, [0, 0, 0]),
    ],
)
def test_losses_at_huge_logits_have_the_right_value_and_slope(name, cost, slope):
    logits = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = LOSSES[name](logits, torch.tensor([[1.0, 0.0, math.nan]])).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(cost) and logits.grad.tolist() == [pytest.approx(slope)]


@pytest.mark.parametrize("name", EVERY)
def test_losses_under_autocast_are_the_same(name):
    logits, targets = draw("soft")
    logits = (30 * logits).float()
    plain = EVERY[name][0](logits, targets.float()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(EVERY[name][0](logits, targets.float()).loss, plain)


@pytest.mark.parametrize("name", EVERY)
def test_a_clip_costs_the_same_beside_any_other(name):
    logits, targets = draw("soft")
    whole = EVERY[name][0](logits, targets)
    alone = EVERY[name][0](logits[5:6], targets[5:6])
    torch.testing.assert_close(alone.loss, whole.loss[5:6], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_clips_and_classes_changes_no_loss(name):
    logits, targets = draw("steps")
    clips = torch.randperm(len(logits), generator=torch.Generator().manual_seed(3))
    loss = EVERY[name][0]
    whole = loss(logits, targets)
    shuffled = loss(logits[clips], targets[clips])
    torch.testing.assert_close(shuffled.loss, whole.loss[clips], rtol=1e-14, atol=1e-14)
    assert torch.equal(shuffled.known, whole.known[clips])
    if name != "bce smooth":
        turned = loss(logits.flip(1), targets.flip(1)).loss
        torch.testing.assert_close(turned, whole.loss, rtol=1e-12, atol=1e-12)


def test_lsep_feels_only_differences_of_scores():
    logits, targets = draw("soft")
    torch.testing.assert_close(lsep_loss(logits + 7.5, targets).loss, lsep_loss(logits, targets).loss)


@pytest.mark.parametrize("name", ["bce", "focal", "focal alpha", "mse"])
def test_a_soft_label_is_met_best_by_its_own_probability(name):
    targets = torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64)
    at = CASES[name][0](targets.logit(), targets).loss
    for aside in (-1.0, -0.1, 0.1, 1.0):
        assert (CASES[name][0](targets.logit() + aside, targets).loss > at).all()


def test_smoothed_labels_lie_as_far_from_both_ends():
    logits, targets = draw("hard")
    drawn_in = torch.where(targets == 1, 0.99, torch.where(targets == 0, 0.01, math.nan)).double()
    got, expected = bce_loss(logits, targets, smoothing=0.01), bce_loss(logits, drawn_in)
    torch.testing.assert_close(got.loss, expected.loss)


def test_one_positive_weight_is_that_of_every_class():
    logits, targets = draw("soft")
    got = bce_loss(logits, targets, positive_weight=3.0)
    torch.testing.assert_close(got, bce_loss(logits, targets, positive_weight=torch.full((7,), 3.0)))
    assert not torch.allclose(got.loss, bce_loss(logits, targets).loss)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name):
    for shape in [(4, 1), (1, 3), (3,), (4, 3, 1)]:
        with pytest.raises(KitError, match=r"\(4, 3\)"):
            LOSSES[name](torch.zeros(4, 3), torch.zeros(shape))


def test_settings_that_fit_nothing_are_refused():
    zeros = torch.zeros(4, 3)
    for weight in (torch.ones(4), torch.ones(1), torch.ones(4, 1)):
        with pytest.raises(KitError, match="positive_weight"):
            bce_loss(zeros, zeros, positive_weight=weight)
    for gamma in (0.5, -1.0, math.nan):
        with pytest.raises(KitError, match="gamma"):
            focal_loss(zeros, zeros, gamma=gamma)
    with pytest.raises(KitError, match="all, known, unknown"):
        soft_bootstrap_loss(zeros, zeros, on="none")
    with pytest.raises(KitError, match="clips, labels"):
        average_loss(bce_loss(zeros, zeros), over="classes")
    with pytest.raises(KitError, match="one per clip"):
        average_loss(bce_loss(zeros, zeros), torch.ones(4, 1))


def test_an_average_is_over_clips_or_over_labels():
    row = RowLoss(torch.tensor([1.0, 4.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 0.0, 2.0]))
    weights = torch.tensor([2.0, 1.0, 5.0, 0.5])
    assert average_loss(row).item() == pytest.approx(7 / 3)
    assert average_loss(row, over="labels").item() == pytest.approx((1 + 12 + 4) / 6)
    assert average_loss(row, weights).item() == pytest.approx((2 + 4 + 1) / 3.5)
    assert average_loss(row, weights, "labels").item() == pytest.approx((2 + 12 + 2) / (2 + 3 + 1))
    assert average_loss(row, 7 * weights).item() == pytest.approx(average_loss(row, weights).item())
    assert average_loss(row, 0 * weights) == 0


@pytest.mark.parametrize("name", ["bce", "focal", "bootstrap", "mse"])
def test_an_average_over_labels_is_the_mean_of_the_flattened_labels(name):
    logits, targets = draw("soft")
    flat = LOSSES[name](logits.reshape(-1, 1), targets.reshape(-1, 1))
    expected = flat.loss[~targets.isnan().flatten()].mean()
    torch.testing.assert_close(average_loss(LOSSES[name](logits, targets), over="labels"), expected)


@pytest.mark.parametrize("weight_by_share", [True, False])
@pytest.mark.parametrize("over", ["clips", "labels"])
def test_sources_are_summed_by_weight_and_share(weight_by_share, over):
    logits, targets = draw("hard")
    sources = torch.arange(len(logits)) % 5 // 2  # 10, 10 and 4 clips
    weights = torch.linspace(0.1, 2.0, len(logits), dtype=torch.float64)
    parts = [(bce_loss, 0.5), (soft_bootstrap_loss, 0.3), (lsep_loss, 2.0), (mse_loss, 9.0)]
    expected = 0.0
    for index, (loss, weight) in enumerate(parts):
        rows = [i for i in range(len(logits)) if sources[i] == index]
        if rows:
            average = average_loss(loss(logits[rows], targets[rows]), weights[rows], over)
            expected += weight * (len(rows) / len(logits) if weight_by_share else 1.0) * average.item()
    got = sum_by_source(logits.requires_grad_(), targets, sources, parts, weights, over, weight_by_share)
    assert got.shape == () and got.item() == pytest.approx(expected, rel=1e-6)
    got.backward()
    assert (logits.grad[targets.isnan()] == 0).all()


def test_one_loss_for_all_sources_by_share_is_its_average():
    logits, targets = draw("soft", unknown=0.0)
    logits, targets = logits[1:], targets[1:]
    sources = (torch.arange(len(logits)) % 3 == 0).long()
    whole = average_loss(bce_loss(logits, targets))
    torch.testing.assert_close(sum_by_source(logits, targets, sources, [(bce_loss, 1.0)] * 2), whole)
    nothing = sum_by_source(logits[:0], targets[:0], sources[:0], [(bce_loss, 1.0)])
    assert nothing == 0


def test_a_source_without_a_loss_is_refused():
    zeros = torch.zeros(4, 3)
    for sources in (
        torch.tensor([0, 1, 2, 1]),
        torch.tensor([0, -1, 1, 1]),
        torch.zeros(4, 1),
        torch.zeros(3),
    ):
        with pytest.raises(KitError, match="source"):
            sum_by_source(zeros, zeros, sources, [(bce_loss, 1.0)] * 2)
    with pytest.raises(KitError, match="source"):
        sum_by_source(zeros, zeros, torch.zeros(4), [])


@pytest.mark.parametrize("name", LOSSES)
def test_a_target_that_is_no_probability_is_refused_with_the_mark_of_the_unknown(name):
    for wrong in (-1.0, 2.0):
        with pytest.raises(KitError, match=r"in \[0, 1\], and NaN, not -1"):
            LOSSES[name](torch.zeros(1, 3), torch.tensor([[0.0, wrong, math.nan]]))


def test_shares_out_of_range_are_refused():
    with pytest.raises(KitError, match=r"smoothing must be in \[0, 0\.5\)"):
        bce_loss(torch.zeros(1, 3), torch.zeros(1, 3), smoothing=0.7)
    with pytest.raises(KitError, match=r"trust must be in \[0, 1\]"):
        soft_bootstrap_loss(torch.zeros(1, 3), torch.zeros(1, 3), trust=1.5)
