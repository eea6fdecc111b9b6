'''Fitted blend weights against a general optimiser and the conditions of a maximum.'''

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from kit.infer.blend import check_weights, fit_weights, mixture_weights


def draw(models: int = 3, n: int = 200, classes: int = 4, unknown: float = 0.3, seed: int = 0) -> Any:
    '''Models of different skill, the last the worst; a fifth of labels true, some of all unknown.'''
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, classes)) < 0.2).astype(float)
    noise = np.linspace(0.7, 2.5, models)[:, None, None] * rng.normal(size=(models, n, classes))
    scores = 1 / (1 + np.exp(-(3 * truth - 2 + noise)))
    truth[rng.random(truth.shape) < unknown] = np.nan
    return scores, truth


@pytest.mark.parametrize('strength', [1e-3, 1.0, 100.0])
def test_a_prior_counts_as_so_many_labels_of_the_rarer_kind(strength: float) -> None:
    scores, truth = draw(n=40)
    known = ~np.isnan(truth)
    likelihood = np.where(truth == 1, scores, 1 - scores)[:, known]
    rarer = min((truth == 1).sum(), (truth == 0).sum())
    expected = mixture_weights(likelihood, np.full(3, 1 / 3), strength / (strength + rarer))
    np.testing.assert_allclose(fit_weights(scores, truth, strength), expected, atol=1e-9)


@pytest.mark.parametrize(('models', 'seed'), [(2, 0), (8, 1), (16, 2)])
def test_a_general_optimiser_finds_nothing_better_where_some_models_are_idle(models: int, seed: int) -> None:
    scores, truth = draw(models, n=300, seed=seed)
    known = ~np.isnan(truth)
    likely = np.where(truth == 1, scores, 1 - scores)[:, known]
    found = minimize(
        lambda w: -np.log(w @ likely).mean(), np.full(models, 1 / models), method='SLSQP',
        jac=lambda w: -(likely / (w @ likely)).mean(axis=1), bounds=[(1e-9, 1)] * models,
        constraints={'type': 'eq', 'fun': lambda w: w.sum() - 1}, options={'maxiter': 500, 'ftol': 1e-12},
    )  # fmt: skip
    fitted = fit_weights(scores, truth, strength=1e-6)
    assert -np.log(fitted @ likely).mean() < found.fun + 1e-6
    np.testing.assert_allclose(fitted, found.x, atol=0.01)


def hard_cases(count: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    '''What models held likely, where weights are drawn and how much: twins, few labels and sure errors included.'''
    rng = np.random.default_rng(2)
    for case in range(count):
        models, n = rng.integers(1, 20), rng.integers(1, 60)
        likely = rng.random((models, n)) ** rng.uniform(0.2, 8)
        likely = (np.round(likely) if case % 3 == 0 else likely).clip(1e-7, 1 - 1e-7)
        if case % 4 == 0:
            likely[-1] = likely[0]
        towards = rng.dirichlet(np.full(models, 0.5)) * 0.99 + 0.01 / models
        yield likely, towards, 10 ** rng.uniform(-6, 0)


def test_at_the_best_weights_no_slope_exceeds_one() -> None:
    for likely, towards, share in hard_cases(150):
        weights = mixture_weights(likely, towards, share)
        slope = (1 - share) * (likely / (weights @ likely)).mean(axis=1) + share * towards / weights
        assert weights.sum() == pytest.approx(1, abs=1e-12) and (weights > 0).all()
        assert slope.max() < 1 + 1e-6


def test_no_step_towards_the_best_weights_goes_back() -> None:
    for likely, towards, share in hard_cases(150):
        path = [mixture_weights(likely, towards, share, max_steps=steps) for steps in range(10)]
        heights = [(1 - share) * np.log(w @ likely).mean() + share * (towards @ np.log(w)) for w in path]
        assert min(np.diff(heights)) > -1e-9


def test_a_strength_of_next_to_nothing_still_leaves_every_model_a_say() -> None:
    scores, truth = draw()
    fitted = fit_weights(np.stack([*scores, 1 - scores[0]]), truth, 1e-30)
    assert 1e-8 < fitted[3] < 1e-4


def test_an_unknown_label_is_as_if_it_were_not_there() -> None:
    scores, truth = draw(unknown=0.0)
    hidden = truth.copy()
    hidden[:, 3] = np.nan
    np.testing.assert_allclose(fit_weights(scores, hidden), fit_weights(scores[:, :, :3], truth[:, :3]), atol=1e-9)


def test_one_model_gets_all_and_models_that_agree_share_alike() -> None:
    scores, truth = draw()
    np.testing.assert_allclose(fit_weights(scores[:1], truth), 1.0)
    np.testing.assert_allclose(fit_weights(scores[[0, 0, 0]], truth), 1 / 3, atol=1e-9)


def test_the_order_of_rows_and_of_models_does_not_matter() -> None:
    scores, truth = draw()
    order = np.random.default_rng(0).permutation(len(truth))
    np.testing.assert_allclose(fit_weights(scores[:, order], truth[order]), fit_weights(scores, truth), atol=1e-6)
    np.testing.assert_allclose(fit_weights(scores[::-1], truth), fit_weights(scores, truth)[::-1], atol=1e-4)


def test_models_that_are_sure_and_right_or_sure_and_wrong_have_finite_weights() -> None:
    _, truth = draw(unknown=0.0)
    for scores in ([truth, 1 - truth], [1 - truth, 1 - truth], [truth, truth * 0 + 0.5]):
        weights = fit_weights(np.array(scores, dtype=np.float32), truth)
        assert np.isfinite(weights).all()
        np.testing.assert_allclose(weights.sum(axis=0), 1)
        assert (weights[0] > 0.8).all() or scores[0] is not truth


@pytest.mark.parametrize('known', ['nothing', 'only false', 'only true', 'no rows'])
def test_labels_of_one_kind_or_none_leave_models_equal(known: str) -> None:
    scores, truth = draw()
    value = {'nothing': np.nan, 'only false': 0.0, 'only true': 1.0, 'no rows': 0.0}[known]
    n = 0 if known == 'no rows' else len(truth)
    np.testing.assert_allclose(fit_weights(scores[:, :n], np.full_like(truth[:n], value)), 1 / 3, atol=1e-9)


def test_fitted_weights_are_weights_that_a_submission_takes() -> None:
    scores, truth = draw(6, n=2000)
    scores[5] = 1 - scores[0]
    fitted = fit_weights(scores, truth)
    assert check_weights(fitted.tolist(), 6) == fitted.tolist() and fitted[5] < 1e-2
