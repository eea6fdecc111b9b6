'''The fitted scale and offset make raw scores the best probabilities, after pooling over windows.'''

import numpy as np
import pytest
import torch

from kit.core.errors import KitError
from kit.labels.calibration import Calibration, fit_calibration, fit_thresholds
from kit.labels.metrics import compute_metric


def share_of_top_two(windows):
    '''Windows weighted by the share of their top two classes: not a function of one class alone.'''
    weights = windows.topk(2, dim=1).values.sum(1) / windows.sum(1)
    return (windows * weights[:, None]).sum(0) / weights.sum()


POOLS = {
    'max': lambda windows: windows.amax(0),
    'max with indices': lambda windows: windows.max(dim=0).values,
    'mean': lambda windows: windows.mean(0),
    'geometric': lambda windows: windows.log().mean(0).exp(),
    'power': lambda windows: windows.pow(3).mean(0).pow(1 / 3),
    'noisy or': lambda windows: 1 - (1 - windows).prod(0),
    'share of top two': share_of_top_two,
}
EVERY_POOL = pytest.mark.parametrize('pool', POOLS.values(), ids=POOLS)


def draw(n=150, n_classes=4, n_windows=(1, 2, 3, 6), unknown=0.2, size=1.0, seed=0):
    '''Random truth, and scores of windows that are `size` times as large as logits.'''
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < 0.3).astype(np.float32)
    logits = []
    for row in truth:
        noise = generator.normal(size=(generator.choice(n_windows), n_classes))
        logits.append((size * (noise + 1.5 * row + 3)).astype(np.float32))
    truth[generator.random(truth.shape) < unknown] = np.nan
    return logits, truth


def slow_loss(logits, truth, pool, scale, offset):
    '''Definition: the mean log loss of the known labels with Platt's targets, clip by clip.'''
    n_true, n_false = np.nansum(truth), np.nansum(1 - truth)
    high, low = (n_true + 1) / (n_true + 2), 1 / (n_false + 2)
    losses = []
    for windows, row in zip(logits, truth, strict=True):
        probs = pool(torch.sigmoid(scale * torch.tensor(windows).double() + offset)).numpy()
        known = ~np.isnan(row)
        probs = probs[known].clip(1e-12, 1 - 1e-12)
        target = low + row[known] * (high - low)
        losses.append(-target * np.log(probs) - (1 - target) * np.log(1 - probs))
    return np.concatenate(losses).mean()


@EVERY_POOL
def test_no_point_of_a_grid_is_better(pool):
    logits, truth = draw(n=60)
    fitted = fit_calibration(logits, truth, pool)
    best = slow_loss(logits, truth, pool, fitted.scale, fitted.offset)
    far = [(scale, offset) for scale in np.geomspace(0.2, 5, 9) for offset in np.linspace(-4, 4, 9)]
    near = [(0.995, 0), (1.005, 0), (1, -0.01), (1, 0.01)]
    for scale, offset in far + near:
        other = slow_loss(logits, truth, pool, fitted.scale * scale, fitted.offset + offset)
        assert other >= best - 1e-9


def test_for_clips_of_one_window_it_equals_scikit_learn_s_logistic_regression_on_platt_s_targets():
    from sklearn.linear_model import LogisticRegression

    logits, truth = draw(n=300, n_windows=(1,), unknown=0.0)
    n_true, n_false = truth.sum(), (1 - truth).sum()
    low, high = 1 / (n_false + 2), (n_true + 1) / (n_true + 2)
    target = (low + truth * (high - low)).ravel()
    scores = np.concatenate(logits).ravel()
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    labels = np.repeat([1, 0], len(scores))
    weights = np.concatenate([target, 1 - target])
    model.fit(np.tile(scores, 2)[:, None], labels, sample_weight=weights)
    fitted = fit_calibration(logits, truth, POOLS['mean'])
    assert fitted.scale == pytest.approx(model.coef_.item(), rel=1e-4)
    assert fitted.offset == pytest.approx(model.intercept_.item(), rel=1e-4)


def test_clips_of_many_lengths_in_any_order_give_the_same_answer():
    logits, truth = draw(n=200, n_windows=range(1, 12))
    fitted = fit_calibration(logits, truth, POOLS['mean'])
    assert fitted == fit_calibration(logits, truth, POOLS['mean'])
    order = np.random.default_rng(0).permutation(200)
    shuffled = fit_calibration([logits[i] for i in order], truth[order], POOLS['mean'])
    assert shuffled.scale == pytest.approx(fitted.scale, rel=1e-5)
    assert shuffled.offset == pytest.approx(fitted.offset, abs=1e-5)


def test_classes_without_known_labels_change_nothing():
    logits, truth = draw(n=100, unknown=0.0)
    wider_logits = [np.concatenate([scores, np.full_like(scores, scores.mean())], axis=1) for scores in logits]
    wider_truth = np.concatenate([truth, np.full_like(truth, np.nan)], axis=1)
    fitted = fit_calibration(logits, truth, POOLS['max'])
    wider = fit_calibration(wider_logits, wider_truth, POOLS['max'])
    assert wider.scale == pytest.approx(fitted.scale, rel=1e-4)
    assert wider.offset == pytest.approx(fitted.offset, abs=1e-4)


@EVERY_POOL
@pytest.mark.parametrize('size', [1e-3, 1.0, 1e4])
def test_scores_that_separate_the_labels_perfectly_have_a_finite_answer(pool, size):
    truth = np.eye(4)[np.arange(40) % 4]
    generator = np.random.default_rng(0)
    logits = [size * (4 * row + generator.random((2, 4))) for row in truth]
    fitted = fit_calibration(logits, truth, pool)
    assert np.isfinite([fitted.scale, fitted.offset]).all() and fitted.scale > 0
    probs = np.array([pool(fitted.probabilities(torch.tensor(scores))).numpy() for scores in logits])
    assert probs[truth == 1].min() > 0.9 and probs[truth == 0].max() < 0.1
    assert probs.max() < 1


@EVERY_POOL
@pytest.mark.parametrize('extreme', [1e4, -1e4, 1e30])
def test_a_few_extreme_scores_move_the_answer_little(pool, extreme):
    logits, truth = draw(n=300, unknown=0.0, n_windows=(2, 3))
    plain = fit_calibration(logits, truth, pool)
    logits[0][:, 0] = logits[1][:, 2] = extreme
    fitted = fit_calibration(logits, truth, pool)
    assert fitted.scale == pytest.approx(plain.scale, rel=0.3)
    assert fitted.offset == pytest.approx(plain.offset, rel=0.3)


@EVERY_POOL
@pytest.mark.parametrize('factor', [0, -1], ids=['constant', 'reversed'])
def test_useless_scores_give_a_positive_scale_and_a_loss_near_the_prior_s(pool, factor):
    logits, truth = draw(unknown=0.0, n_windows=(1, 2))
    logits = [factor * scores for scores in logits]
    fitted = fit_calibration(logits, truth, pool)
    assert np.isfinite([fitted.scale, fitted.offset]).all() and fitted.scale > 0
    prior = float(np.mean(truth))
    entropy = -prior * np.log(prior) - (1 - prior) * np.log(1 - prior)
    assert slow_loss(logits, truth, pool, fitted.scale, fitted.offset) < entropy + 0.05


def test_soft_truth_and_inference_mode_are_accepted():
    logits, truth = draw()
    soft = 0.8 * truth + 0.1
    with torch.inference_mode():
        fitted = fit_calibration(logits, soft, POOLS['max'])
    assert fitted == fit_calibration(logits, soft, POOLS['max'])
    assert fitted.scale < fit_calibration(logits, truth, POOLS['max']).scale


def test_a_calibration_survives_json_and_refuses_a_scale_of_zero():
    fitted = fit_calibration(*draw(), POOLS['max'])
    assert Calibration(**fitted.to_dict()) == fitted
    assert Calibration().probabilities(torch.zeros(2)).tolist() == [0.5, 0.5]
    with pytest.raises(KitError, match='scale'):
        Calibration(scale=0.0)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda logits, truth: (logits, truth * 0), 'is true.*rank blends'),
        (lambda logits, truth: (logits, truth * 0 + 1), 'is false'),
        (lambda logits, truth: ([], truth[:0]), 'none of the 0 known'),
    ],
)
def test_input_that_cannot_be_fitted_is_refused(change, words):
    with pytest.raises(KitError, match=words):
        fit_calibration(*change(*draw()), POOLS['max'])


def f1_at(truth, probs, threshold):
    '''The F1 of one class's known labels, decided at a threshold.'''
    known = ~np.isnan(truth)
    true, chosen = truth[known] == 1, probs[known] >= threshold
    return 2 * (true & chosen).sum() / max(1, true.sum() + chosen.sum())


def draw_decisions(n=300, seed=0):
    '''Truth with unknown labels, frequent and rare, and probabilities that are too low by one unit of log odds.'''
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, 3)) < [0.5, 0.2, 0.01]).astype(float)
    probs = 1 / (1 + np.exp(1 - 3 * truth + 2 - generator.normal(size=truth.shape)))
    return np.where(generator.random(truth.shape) < 0.2, np.nan, truth), probs


def test_a_fitted_threshold_has_the_best_f1_of_its_class_and_rare_classes_lean_on_the_others():
    truth, probs = draw_decisions()
    grid = 1 / (1 + np.exp(-np.linspace(-6, 6, 121)))
    f1 = np.array([[f1_at(truth[:, k], probs[:, k], t) for k in range(3)] for t in grid])
    alone = fit_thresholds('macro_f1', truth, probs, strength=1e-9)
    for k in range(3):
        assert f1_at(truth[:, k], probs[:, k], alone[k]) == pytest.approx(f1[:, k].max())
    together = fit_thresholds('macro_f1', truth, probs, strength=1e9)
    np.testing.assert_allclose(together, grid[f1.mean(axis=1).argmax()])
    n_true = (truth == 1).sum(axis=0)
    usual = grid[(n_true * f1 + 16 * f1.mean(axis=1, keepdims=True)).argmax(axis=0)]
    np.testing.assert_allclose(fit_thresholds('macro_f1', truth, probs), usual)


def test_a_metric_over_clips_has_one_threshold_for_all_classes():
    truth, probs = draw_decisions()
    grid = 1 / (1 + np.exp(-np.linspace(-6, 6, 121)))
    values = [compute_metric('micro_f1', truth, np.where(probs >= t, 1.0, 0.0)) for t in grid]
    fitted = fit_thresholds('micro_f1', truth, probs)
    np.testing.assert_allclose(fitted, grid[int(np.argmax(values))])
    assert max(values) > compute_metric('micro_f1', truth, probs)
