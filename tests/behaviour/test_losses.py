'''Losses equal their definitions, stay finite, and never treat an unknown label as a false one.'''

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
    cross_entropy_loss,
    focal_loss,
    lsep_loss,
    soft_auc_loss,
    soft_bootstrap_loss,
    sum_by_source,
)
from kit.train.recipe import RANKING_LOSSES

POSITIVE_WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0, 10.0, 4.0], dtype=torch.float64)


def probability(score):
    return 1 / (1 + math.exp(-score))


def cross_entropy(score, target):
    return target * math.log1p(math.exp(-score)) + (1 - target) * math.log1p(math.exp(score))


def mean(terms):
    return sum(terms) / len(terms) if terms else 0.0


def by_label(term):
    '''A definition as the mean of term(score, target, class) over the known labels of a clip.'''

    def slow(scores, targets):
        labels = enumerate(zip(scores, targets, strict=True))
        return mean([term(s, t, k) for k, (s, t) in labels if not math.isnan(t)])

    return slow


def smoothed_weighted_term(score, target, k):
    target = 0.99 * target + 0.01 * (1 - target)
    weight = float(POSITIVE_WEIGHT[k])
    return weight * target * cross_entropy(score, 1.0) + (1 - target) * cross_entropy(score, 0.0)


def focal_term(score, target, gamma, alpha=None):
    weight = 1.0 if alpha is None else target * alpha + (1 - target) * (1 - alpha)
    return weight * abs(target - probability(score)) ** gamma * cross_entropy(score, target)


def bootstrap_term(score, target, trust=0.7):
    return cross_entropy(score, trust * target + (1 - trust) * probability(score))


def slow_bootstrap_unknown(scores, targets):
    '''Known labels stay; an unknown one is false, with the prediction mixed in.'''
    return mean(
        [
            bootstrap_term(s, 0.0, 0.1) if math.isnan(t) else cross_entropy(s, t)
            for s, t in zip(scores, targets, strict=True)
        ]
    )


def slow_bootstrap_all(scores, targets):
    return by_label(lambda s, t, k: bootstrap_term(s, t, 0.6))(scores, np.nan_to_num(targets).tolist())


def slow_lsep(scores, targets):
    '''Definition: a double loop over pairs. A comparison with NaN is False, which excludes unknown labels.'''
    pairs = [
        (targets[i] - targets[j]) * math.exp(scores[j] - scores[i])
        for i in range(len(scores))
        for j in range(len(scores))
        if targets[i] > targets[j]
    ]
    return math.log1p(sum(pairs))


def slow_softmax(scores, targets):
    '''Definition, over the known labels. A clip without a true label has no distribution to learn.'''
    known = [(s, t) for s, t in zip(scores, targets, strict=True) if not math.isnan(t)]
    total = sum(t for _, t in known)
    normaliser = math.log(sum(math.exp(s) for s, _ in known)) if known else 0.0
    return sum(t / total * (normaliser - s) for s, t in known) if total else 0.0


def slow_soft_auc(scores, targets, bce=0.0):
    '''Definition: a double loop over the batch's pairs of a true and a false label. Each clip gets half of a pair.

    Shape:  lists (B, K) -> (B,)
    '''
    labels = [(b, s, t) for b in range(len(scores)) for s, t in zip(scores[b], targets[b], strict=True)]
    true, false = ([x for x in labels if sign * (x[2] - 0.5) > 0] for sign in (1, -1))
    losses = [bce * CASES['bce'][1](s, t) for s, t in zip(scores, targets, strict=True)]
    n_clips = sum(not all(map(math.isnan, row)) for row in targets)
    for b, s, t in true:
        for b_false, s_false, t_false in false:
            pair = (t - 0.5) * (0.5 - t_false) * math.log1p(math.exp(s_false - s))
            for clip in (b, b_false):
                losses[clip] += 0.5 * pair * n_clips / (len(true) * len(false))
    return losses


CASES = {
    'bce': (bce_loss, by_label(lambda s, t, k: cross_entropy(s, t))),
    'lsep': (lsep_loss, slow_lsep),
    'focal': (focal_loss, by_label(lambda s, t, k: focal_term(s, t, 2.0))),
    'bootstrap': (soft_bootstrap_loss, by_label(lambda s, t, k: bootstrap_term(s, t))),
    'cross-entropy': (cross_entropy_loss, slow_softmax),
    'soft-auc': (soft_auc_loss, slow_soft_auc),
    'soft-auc bce': (partial(soft_auc_loss, bce=0.25), partial(slow_soft_auc, bce=0.25)),
    'bce smooth': (
        partial(bce_loss, smoothing=0.01, positive_weight=POSITIVE_WEIGHT),
        by_label(smoothed_weighted_term),
    ),
    'focal alpha': (partial(focal_loss, gamma=1.5, alpha=0.25), by_label(lambda s, t, k: focal_term(s, t, 1.5, 0.25))),
    'focal 0': (partial(focal_loss, gamma=0.0), by_label(lambda s, t, k: cross_entropy(s, t))),
    'bootstrap attached': (partial(soft_bootstrap_loss, detach=False), by_label(lambda s, t, k: bootstrap_term(s, t))),
}
# These also train unknown labels, by the network's own prediction.
ON_UNKNOWN = {
    'unknown': (partial(soft_bootstrap_loss, trust=0.1, on='unknown', detach=False), slow_bootstrap_unknown),
    'all': (partial(soft_bootstrap_loss, trust=0.6, on='all', detach=False), slow_bootstrap_all),
}
ALL_CASES = {**CASES, **ON_UNKNOWN}
# These compare the clips of a batch, so a clip's loss depends on the others. Their definitions read a whole batch.
OVER_BATCHES = ('soft-auc', 'soft-auc bce')
KINDS = ('hard', 'soft', 'steps')


def draw(kind, unknown=0.3, n=24, n_classes=7, seed=0):
    '''Random logits and targets; "steps" are soft targets with many equal ones.'''
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    targets = torch.rand(n, n_classes, generator=generator, dtype=torch.float64)
    if kind == 'hard':
        targets = (targets < 0.3).double()
    if kind == 'steps':
        targets = (targets * 4).round() / 4
    targets[torch.rand(n, n_classes, generator=generator) < unknown] = math.nan
    targets[0], targets[1], targets[2] = math.nan, 0.0, 1.0
    targets[3, 1:] = math.nan
    return logits, targets


def test_every_named_loss_is_tested():
    assert all(CASES[name][0] is LOSSES[name] for name in LOSSES)


@pytest.mark.parametrize('name', ALL_CASES)
@pytest.mark.parametrize('kind', KINDS)
def test_a_loss_equals_its_definition_and_counts_its_labels(name, kind):
    logits, targets = draw(kind)
    loss, slow = ALL_CASES[name]
    rows = logits.tolist(), targets.tolist()
    expected = slow(*rows) if name in OVER_BATCHES else [slow(s, t) for s, t in zip(*rows, strict=True)]
    counts = [7] * len(targets) if name in ON_UNKNOWN else (~targets.isnan()).sum(1).tolist()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        row = loss(logits.to(dtype).requires_grad_(), targets.to(dtype))
        assert row.loss.dtype == row.known.dtype == dtype
        np.testing.assert_allclose(row.loss.detach(), expected, rtol=tolerance, atol=tolerance)
        assert row.known.tolist() == counts and not row.known.requires_grad


@pytest.mark.parametrize('name', [name for name in ALL_CASES if name != 'bootstrap'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_gradient_equals_finite_differences(name, kind):
    '''Except for "bootstrap", whose targets depend on the logits but are detached.'''
    logits, targets = draw(kind)
    assert torch.autograd.gradcheck(lambda x: ALL_CASES[name][0](x, targets).loss, logits.requires_grad_())


@pytest.mark.parametrize('on', ['known', 'unknown', 'all'])
def test_a_detached_prediction_is_a_target_like_any_other(on):
    logits, targets = draw('soft')
    logits.requires_grad_()
    unknown = targets.isnan()
    selected = {'known': ~unknown, 'unknown': unknown, 'all': torch.ones_like(unknown)}[on]
    mixed = 0.7 * targets.nan_to_num(0.0) + 0.3 * logits.detach().sigmoid()
    losses = [
        soft_bootstrap_loss(logits, targets, on=on).loss,
        bce_loss(logits, torch.where(selected, mixed, targets)).loss,
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits)[0] for loss in losses))


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('kind', KINDS)
def test_unknown_labels_have_no_gradient_and_no_influence(name, kind):
    logits, targets = draw(kind)
    loss, unknown = CASES[name][0], targets.isnan()
    logits.requires_grad_()
    losses = loss(logits, targets).loss
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (gradient[unknown] == 0).all()
    moved = torch.where(unknown, logits.detach() + 50, logits.detach())
    assert torch.equal(loss(moved, targets).loss, losses)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('over', ['clips', 'labels'])
@pytest.mark.parametrize('shape', [(3, 7), (0, 0), (0, 5), (3, 0)])
def test_a_batch_without_known_labels_has_loss_zero_and_no_gradient(name, over, shape):
    logits = torch.randn(shape, requires_grad=True)
    row = LOSSES[name](logits, torch.full(shape, math.nan))
    assert row.loss.tolist() == row.known.tolist() == [0] * shape[0]
    average = average_loss(row, over=over)
    average.backward()
    assert average == 0 and (logits.grad == 0).all() and logits.grad.shape == shape


@pytest.mark.parametrize('row', [[0.0] * 4, [1.0] * 4, [0.4] * 4, [math.nan, 1, 1, math.nan], [1.0]])
@pytest.mark.parametrize('size', [1.0, 1e4])
def test_lsep_of_a_clip_with_equal_targets_is_zero(row, size):
    logits = (size * torch.linspace(-1, 1, len(row))[None]).requires_grad_()
    loss = lsep_loss(logits, torch.tensor([row])).loss
    loss.sum().backward()
    assert loss.tolist() == [0] and (logits.grad == 0).all()


@pytest.mark.parametrize('name', ALL_CASES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('kind', KINDS)
def test_losses_stay_finite_at_huge_logits(name, dtype, kind):
    _, targets = draw(kind, n=64, n_classes=7 if name == 'bce smooth' else 80)
    limits = {'bce smooth': float(POSITIVE_WEIGHT.max()), 'focal': 1.2, 'focal alpha': 1.2}
    steepest = limits.get(name, 1 + 1e-5)
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 1.0, 15.0, 100.0, 1e4):
        signs = torch.randint(-1, 2, targets.shape, generator=generator)
        logits = (size * signs).to(dtype).requires_grad_()
        loss = ALL_CASES[name][0](logits, targets.float()).loss
        assert loss.dtype == torch.float32 and loss.isfinite().all() and (loss >= 0).all()
        loss.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad.abs() <= steepest).all()


@pytest.mark.parametrize(
    ('name', 'value', 'slope'),
    [
        ('lsep', 2e4, [-1, 1, 0]),
        ('bce', 1e4, [-0.5, 0.5, 0]),
        ('focal', 1e4, [-0.5, 0.5, 0]),
        ('bootstrap', 7e3, [-0.35, 0.35, 0]),
        ('cross-entropy', 2e4, [-1, 1, 0]),
        ('soft-auc', 5e3, [-0.25, 0.25, 0]),
    ],
)
def test_losses_at_huge_logits_have_the_right_value_and_slope(name, value, slope):
    logits = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = LOSSES[name](logits, torch.tensor([[1.0, 0.0, math.nan]])).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(value) and logits.grad.tolist() == [pytest.approx(slope)]


@pytest.mark.parametrize('name', [name for name in ALL_CASES if name not in OVER_BATCHES])
def test_a_clip_s_loss_is_the_same_alone_and_under_autocast(name):
    logits, targets = draw('soft')
    logits, targets = 30 * logits.float(), targets.float()
    whole = ALL_CASES[name][0](logits, targets).loss
    alone = ALL_CASES[name][0](logits[5:6], targets[5:6]).loss
    torch.testing.assert_close(alone, whole[5:6], rtol=1e-6, atol=0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(ALL_CASES[name][0](logits, targets).loss, whole)


@pytest.mark.parametrize('kind', KINDS)
def test_the_average_of_soft_auc_is_its_mean_over_the_pairs_of_the_batch(kind):
    logits, targets = draw(kind)
    distances = (targets - 0.5).nan_to_num(0.0)
    true, false = distances > 0, distances < 0
    pairs = torch.nn.functional.softplus(logits[false] - logits[true][:, None])
    mean_over_pairs = (pairs * distances[true][:, None] * -distances[false]).mean()
    torch.testing.assert_close(average_loss(soft_auc_loss(logits, targets)), mean_over_pairs)


def test_soft_auc_in_chunks_of_pairs_has_the_loss_and_the_gradient_of_all_pairs_at_once(monkeypatch):
    logits, targets = draw('soft')
    results = []
    for pairs_at_once in (10**9, 100, 1):
        monkeypatch.setattr('kit.train.losses.PAIRS_AT_ONCE', pairs_at_once)
        leaf = logits.clone().requires_grad_()
        loss = soft_auc_loss(leaf, targets).loss
        results.append((loss.detach(), *torch.autograd.grad((loss * torch.arange(len(loss))).sum(), leaf)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize('targets', [[[1.0, 1.0], [1.0, math.nan]], [[0.0, 0.5], [0.2, 0.0]], [[0.5, 0.5]]])
def test_soft_auc_of_a_batch_without_a_pair_is_its_share_of_bce(targets):
    targets = torch.tensor(targets)
    logits = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = soft_auc_loss(logits, targets).loss
    assert (loss == 0).all() and (torch.autograd.grad(loss.sum(), logits)[0] == 0).all()
    bce = 0.25 * bce_loss(logits, targets).loss
    torch.testing.assert_close(soft_auc_loss(logits, targets, bce=0.25).loss, bce)


def test_cross_entropy_of_a_clip_without_a_true_label_is_zero_without_a_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy_loss(logits, torch.tensor([[0.0, 0.0, 0.0], [0.0, math.nan, 0.0]])).loss
    loss.sum().backward()
    assert (loss == 0).all() and (logits.grad == 0).all()


@pytest.mark.parametrize('name', ['soft-auc', 'cross-entropy'])
def test_the_level_of_the_logits_does_not_change_a_ranking_loss(name):
    '''So they are no log odds, and RANKING_LOSSES has these losses.'''
    logits, targets = draw('hard')
    loss = LOSSES[name]
    torch.testing.assert_close(loss(logits + 7.0, targets).loss, loss(logits, targets).loss)
    assert name in RANKING_LOSSES


@pytest.mark.parametrize('name', ['bce', 'focal', 'focal alpha'])
def test_the_loss_of_a_soft_label_is_least_at_its_own_probability(name):
    targets = torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64)
    least = CASES[name][0](targets.logit(), targets).loss
    for shift in (-1.0, -0.1, 0.1, 1.0):
        assert (CASES[name][0](targets.logit() + shift, targets).loss > least).all()


def test_a_single_positive_weight_applies_to_every_class():
    logits, targets = draw('soft')
    row = bce_loss(logits, targets, positive_weight=3.0)
    torch.testing.assert_close(row, bce_loss(logits, targets, positive_weight=torch.full((7,), 3.0)))


def test_an_average_is_over_clips_or_over_labels():
    row = RowLoss(torch.tensor([1.0, 4.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 0.0, 2.0]))
    weights = torch.tensor([2.0, 1.0, 5.0, 0.5])
    assert average_loss(row).item() == pytest.approx(7 / 3)
    assert average_loss(row, over='labels').item() == pytest.approx((1 + 12 + 4) / 6)
    assert average_loss(row, weights).item() == pytest.approx((2 + 4 + 1) / 3.5)
    assert average_loss(row, weights, 'labels').item() == pytest.approx((2 + 12 + 2) / (2 + 3 + 1))
    assert average_loss(row, 0 * weights) == 0


@pytest.mark.parametrize('weight_by_share', [True, False])
@pytest.mark.parametrize('over', ['clips', 'labels'])
def test_sources_are_summed_by_weight_and_share(weight_by_share, over):
    logits, targets = draw('hard')
    sources = torch.arange(len(logits)) % 5 // 2  # 10, 10 and 4 clips; none of the fourth source
    weights = torch.linspace(0.1, 2.0, len(logits), dtype=torch.float64)
    parts = [(bce_loss, 0.5), (soft_bootstrap_loss, 0.3), (lsep_loss, 2.0), (bce_loss, 9.0)]
    expected = 0.0
    for index, (loss, weight) in enumerate(parts[:3]):
        rows = sources == index
        share = float(rows.double().mean()) if weight_by_share else 1.0
        average = average_loss(loss(logits[rows], targets[rows]), weights[rows], over)
        expected += weight * share * average.item()
    total = sum_by_source(logits.requires_grad_(), targets, sources, parts, weights, over, weight_by_share)
    assert total.shape == () and total.item() == pytest.approx(expected, rel=1e-6)
    total.backward()
    assert (logits.grad[targets.isnan()] == 0).all()
    assert sum_by_source(logits[:0], targets[:0], sources[:0], parts) == 0


@pytest.mark.parametrize('name', LOSSES)
def test_targets_outside_zero_to_one_are_refused(name):
    for wrong in (-1.0, 2.0):
        with pytest.raises(KitError, match=r'in \[0, 1\], and NaN, not -1'):
            LOSSES[name](torch.zeros(1, 3), torch.tensor([[0.0, wrong, math.nan]]))


@pytest.mark.parametrize(
    ('loss', 'settings', 'words'),
    [
        (bce_loss, {'positive_weight': torch.ones(4)}, 'positive_weight'),
        (bce_loss, {'positive_weight': torch.ones(1)}, 'positive_weight'),
        (bce_loss, {'smoothing': 0.7}, r'smoothing must be in \[0, 0\.5\)'),
        (focal_loss, {'gamma': 0.5}, 'gamma'),
        (focal_loss, {'gamma': math.nan}, 'gamma'),
        (soft_bootstrap_loss, {'trust': 1.5}, r'trust must be in \[0, 1\]'),
        (soft_bootstrap_loss, {'on': 'none'}, 'all, known, unknown'),
    ],
)
def test_wrong_settings_are_refused(loss, settings, words):
    zeros = torch.zeros(4, 3)
    with pytest.raises(KitError, match=words):
        loss(zeros, zeros, **settings)
