'''Class priors, neighbours and recordings against slow definitions and the likelihood's own maximum.'''

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.infer.postprocess import estimate_prevalences, scale_odds, shift_by_site, smooth_neighbours, weigh_by_recording

TRAINED = np.array([0.5, 0.1, 0.3])


def shifted(wanted: Any, n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    '''Truth of other prevalences than TRAINED, and what a model calibrated on TRAINED says: Gaussians 2 apart.'''
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 3)) < wanted
    feature = rng.normal(size=truth.shape) + 2 * truth
    odds = np.exp(2 * feature - 2) * TRAINED / (1 - TRAINED)
    return odds / (1 + odds), truth.astype(float)


def windows(seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    '''Rows of recordings of 1 to 6 windows, shuffled, times not evenly spaced.'''
    rng = np.random.default_rng(seed)
    names = [name for name, count in zip('edcba', (1, 6, 2, 3, 1), strict=True) for _ in range(count)]
    times = np.concatenate([rng.permutation(9)[:count] * 5.0 for count in (1, 6, 2, 3, 1)])
    order = rng.permutation(len(names))
    return rng.random((len(names), 3)), [names[i] for i in order], times[order]


def test_odds_are_scaled_as_bayes_would() -> None:
    rng = np.random.default_rng(0)
    p, wanted = rng.random((20, 3)), np.array([0.9, 0.01, 0.3])
    scaled = scale_odds(p, TRAINED, wanted)
    for (n, k), value in np.ndenumerate(p):
        factor = (wanted[k] / (1 - wanted[k])) / (TRAINED[k] / (1 - TRAINED[k]))
        odds = value / (1 - value) * factor
        assert scaled[n, k] == pytest.approx(odds / (1 + odds), abs=1e-12)
    np.testing.assert_allclose(scale_odds(scaled, wanted, TRAINED), p, atol=1e-12)
    np.testing.assert_allclose(scale_odds(p, TRAINED, TRAINED), p, atol=1e-15)


def test_scaled_probabilities_have_the_prevalence_of_the_set() -> None:
    wanted = np.array([0.1, 0.4, 0.3])
    p, truth = shifted(wanted, 20000)
    assert np.abs(p.mean(axis=0) - truth.mean(axis=0)).max() > 0.1
    np.testing.assert_allclose(scale_odds(p, TRAINED, wanted).mean(axis=0), truth.mean(axis=0), atol=0.01)


def log_likelihood(prior: float, p: np.ndarray, trained: float, strength: float) -> float:
    '''Of one class's scores, up to a constant, and of the pseudo rows.'''
    own = np.log(prior * p / trained + (1 - prior) * (1 - p) / (1 - trained)).sum()
    return float(own + strength * (trained * np.log(prior) + (1 - trained) * np.log(1 - prior)))


@pytest.mark.parametrize('strength', [1e-6, 1.0, 200.0])
def test_no_prevalence_of_a_grid_is_more_likely(strength: float) -> None:
    p, _ = shifted((0.15, 0.4, 0.02), 300)
    found = estimate_prevalences(p, TRAINED, strength)
    grid = np.linspace(0.0005, 0.9995, 1000)
    for k in range(3):
        values = [log_likelihood(prior, p[:, k], TRAINED[k], strength) for prior in grid]
        assert log_likelihood(found[k], p[:, k], TRAINED[k], strength) >= max(values) - 1e-9
        assert abs(found[k] - grid[int(np.argmax(values))]) < 0.001


def test_shifted_prevalences_are_recovered_and_unshifted_ones_stay() -> None:
    for wanted in ((0.1, 0.4, 0.3), tuple(TRAINED), (0.95, 0.02, 0.6)):
        p, truth = shifted(wanted, 20000)
        np.testing.assert_allclose(estimate_prevalences(p, TRAINED), truth.mean(axis=0), atol=0.012)


def test_a_set_without_information_keeps_the_trained_prevalences() -> None:
    for n in (0, 1, 50):
        np.testing.assert_allclose(estimate_prevalences(np.tile(TRAINED, (n, 1)), TRAINED), TRAINED, atol=1e-9)
    one = estimate_prevalences(np.array([[0.6, 0.6, 0.6]]), TRAINED, 10.0)
    assert (one > TRAINED).all() and (one < TRAINED + 0.15).all()


def test_neither_priors_nor_their_estimate_leave_zero_to_one() -> None:
    sure = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    for trained in (TRAINED, np.zeros(3), np.ones(3)):
        for p in (sure, sure[:1], np.full((4, 3), 0.2), np.zeros((5, 3)), np.ones((5, 3))):
            wanted = estimate_prevalences(p, trained)
            for scaled in (wanted, scale_odds(p, trained, wanted), scale_odds(p, trained, 1 - trained)):
                assert np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1
    np.testing.assert_array_equal(scale_odds(sure, TRAINED, [0.9, 0.01, 0.2]), sure)


def test_an_estimate_does_not_depend_on_the_order_of_rows() -> None:
    p, _ = shifted((0.1, 0.4, 0.3), 200)
    one, other = estimate_prevalences(p, TRAINED), estimate_prevalences(p[::-1], TRAINED)
    np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize('kernel', [(0.5,), (1.0,), (0.5, 0.25), (0.1, 0.0, 0.4, 0.2, 0.1, 0.1, 0.1), ()])
def test_a_row_is_averaged_with_its_recordings_neighbours_in_time(kernel: tuple[float, ...]) -> None:
    p, names, times = windows()
    smooth = smooth_neighbours(p, names, times, kernel)
    in_time = {name: sorted(t for t, other in zip(times, names, strict=True) if other == name) for name in names}
    gaps = Counter(later - earlier for of_name in in_time.values() for earlier, later in pairwise(of_name))
    period_s = min(gaps, key=lambda gap: (-gaps[gap], gap))
    for row, name in enumerate(names):
        total, weight = p[row].copy(), 1.0
        for other in range(len(names)):
            distance = abs(times[other] - times[row]) / period_s
            if names[other] == name and distance in range(1, len(kernel) + 1):
                share = kernel[int(distance) - 1]
                total, weight = total + share * p[other], weight + share
        np.testing.assert_allclose(smooth[row], total / weight, atol=1e-12)


def test_another_recording_never_counts() -> None:
    p, names, times = windows()
    changed = p.copy()
    changed[[name == 'd' for name in names]] = 0.99
    kept = [name != 'd' for name in names]
    for step in (lambda s: smooth_neighbours(s, names, times, (0.5, 0.5)), lambda s: weigh_by_recording(s, names)):
        np.testing.assert_array_equal(step(changed)[kept], step(p)[kept])
        assert not np.array_equal(step(changed), step(p))


def test_rows_in_another_order_get_the_same_answers() -> None:
    p, names, times = windows()
    order = np.random.default_rng(1).permutation(len(names))
    mixed = [names[i] for i in order]
    smooth, weighed = smooth_neighbours(p, names, times, (0.5, 0.2)), weigh_by_recording(p, names)
    np.testing.assert_array_equal(smooth_neighbours(p[order], mixed, times[order], (0.5, 0.2)), smooth[order])
    np.testing.assert_array_equal(weigh_by_recording(p[order], mixed), weighed[order])


@pytest.mark.parametrize('top_k', [1, 2, 4, 100])
@pytest.mark.parametrize('power', [1.0, 0.4])
def test_scores_are_multiplied_by_their_recordings_best(top_k: int, power: float) -> None:
    p, names, _ = windows()
    weighed = weigh_by_recording(p, names, top_k, power)
    for (row, k), value in np.ndenumerate(p):
        best = sorted((p[i, k] for i in range(len(names)) if names[i] == names[row]), reverse=True)[:top_k]
        assert weighed[row, k] == pytest.approx(value * (sum(best) / len(best)) ** power, abs=1e-12)
    assert weigh_by_recording(p[:0], []).shape == (0, 3)


def test_log_odds_are_shifted_towards_those_of_a_site_and_an_hour_by_their_number_of_recordings() -> None:
    names = ['x_S01_20250101_050000', 'x_S01_20250102_060000', 'y_S02_20250101_050000', 'plain']
    recordings = [name for name in names for _ in range(2)]
    p = np.random.default_rng(0).uniform(0.05, 0.95, (8, 3))
    shifted_rows = shift_by_site(p, recordings, 0.5, strength=2.0)
    odds = np.log(p / (1 - p))
    overall = p.mean(axis=0)
    for row, name in enumerate(recordings):
        expected = odds[row].copy()
        for part in (['S01'], ['S02'], ['_050000'], ['_060000']):
            rows = [i for i, other in enumerate(recordings) if part[0] in other]
            if part[0] not in name:
                continue
            n = len({recordings[i] for i in rows})
            mean = (n * p[rows].mean(axis=0) + 2.0 * overall) / (n + 2.0)
            expected += 0.5 * (np.log(mean / (1 - mean)) - np.log(overall / (1 - overall)))
        np.testing.assert_allclose(shifted_rows[row], 1 / (1 + np.exp(-expected)), atol=1e-12)
    np.testing.assert_allclose(shifted_rows[6:], p[6:], atol=1e-12)


def test_zeros_and_ones_stay_within_zero_and_one() -> None:
    for sure in (np.zeros((4, 2)), np.ones((4, 2)), np.eye(4)[:, :2], np.ones((1, 1))):
        names, times = ['a'] * len(sure), np.arange(len(sure))
        smooth, weighed = smooth_neighbours(sure, names, times, (0.7, 0.3)), weigh_by_recording(sure, names)
        for scores in (smooth, weighed, shift_by_site(sure, ['x_S01_20250101_050000'] * len(sure), 1.0)):
            assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1


def test_rows_of_one_recording_at_one_time_are_refused() -> None:
    with pytest.raises(KitError, match="rows 0 and 2 are one recording's at one time"):
        smooth_neighbours(np.full((3, 3), 0.5), ['a', 'b', 'a'], [5, 5, 5])
