'''Bootstrap intervals equal those found by resampling clips, or whole groups of clips.'''

import contextlib

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.labels.bootstrap import (
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    class_intervals,
    percentile_interval,
)
from kit.labels.metrics import METRICS, class_metric, lwlrap, metric_per_class
from tests.behaviour.slow_metrics import SLOW_METRICS


def draw(seed, n=40, n_classes=6, unknown=0.2, share=0.3):
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < share).astype(float)
    scores = (generator.normal(size=truth.shape) + truth).round(1)
    scores = (scores / 12 + 0.5).clip(0, 1)
    truth[generator.random(truth.shape) < unknown] = np.nan
    return truth, scores


def auc_per_class(truth, scores):
    return metric_per_class('macro_auc', truth, scores)


def first_auc(truth, scores):
    '''NaN on a draw whose labels of the first class are all true or all false.'''
    return auc_per_class(truth, scores)[0]


def bounds(interval):
    return interval.value, interval.low, interval.high


def statistic_of(metric, truth, scores):
    '''The metric's slow definition, computed on every draw in full.'''

    def computed(counts):
        values = np.full(counts.shape[1], np.nan)
        for i, of_draw in enumerate(counts.T):
            rows = np.repeat(np.arange(len(counts)), of_draw)
            with contextlib.suppress(KitError):
                values[i] = metric(truth[rows], scores[rows])
        return values

    return computed


def slow_interval(metric, truth, scores, draws=1000):
    '''The interval of a function of truth and scores.'''
    value = float(metric(truth, scores))
    return percentile_interval(value, statistic_of(metric, truth, scores), np.arange(len(truth)), draws)


def slow_bounds(metric, truth, scores, groups, draws):
    '''Definition: draw groups with replacement, concatenate their rows, compute the metric, take quantiles.'''
    generator = np.random.default_rng(0)
    names = sorted(set(groups))
    values = []
    while len(values) < draws:
        drawn = [names[i] for i in generator.integers(len(names), size=len(names))]
        rows = [i for name in drawn for i in range(len(groups)) if groups[i] == name]
        values.append(metric(truth[rows], scores[rows]))
    return metric(truth, scores), *np.quantile(values, [0.025, 0.975])


@pytest.fixture
def fewer_draws(monkeypatch):
    '''A hundred draws, for definitions that take long.'''
    monkeypatch.setitem(bootstrap_interval.__globals__, 'draws_of', lambda metric, truth: 100)


@pytest.mark.parametrize('metric', METRICS)
def test_an_interval_equals_its_definition(metric, fewer_draws):
    truth, scores = draw(1)
    groups = [f'recording {i // 3:02d}' for i in range(40)]
    interval = bootstrap_interval(metric, truth, scores, groups)
    assert bounds(interval) == pytest.approx(slow_bounds(SLOW_METRICS[metric], truth, scores, groups, 100), abs=1e-12)
    assert interval.low < interval.value < interval.high and interval.redrawn == 0
    assert bootstrap_interval(metric, truth, scores, groups) == interval


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('share', [0.3, 0.004])
def test_weighting_clips_equals_computing_every_draw_in_full(metric, share, fewer_draws):
    '''With few true labels some draws have no value and are repeated, unless the metric has a value without them.'''
    truth, scores = draw(2, share=share)
    truth[3, 2] = truth[5, 2] = 1
    fast = bootstrap_interval(metric, truth, scores)
    slow = slow_interval(SLOW_METRICS[metric], truth, scores, 100)
    assert bounds(fast) == pytest.approx(bounds(slow), abs=1e-12)
    assert fast.redrawn == slow.redrawn
    assert (fast.redrawn > 0) == (share < 0.1 and metric not in ('micro_f1', 'padded_cmap'))
    others = np.random.default_rng(0).permuted(scores, axis=1)
    fast = bootstrap_difference(metric, truth, scores, others)
    one, other = (statistic_of(SLOW_METRICS[metric], truth, of_model) for of_model in (scores, others))
    slow = percentile_interval(fast.value, lambda counts: one(counts) - other(counts), np.arange(40), 100)
    assert bounds(fast) == pytest.approx(bounds(slow), abs=1e-12)


def test_with_groups_the_order_of_rows_does_not_matter():
    truth, scores = draw(4)
    groups = np.arange(40) // 3
    rows = np.random.default_rng(0).permutation(40)
    shuffled = bootstrap_interval('lwlrap', truth[rows], scores[rows], groups[rows])
    interval = bootstrap_interval('lwlrap', truth, scores, groups)
    assert bounds(shuffled) == pytest.approx(bounds(interval), abs=1e-12)


def test_copies_of_a_clip_in_its_group_do_not_narrow_the_interval():
    truth, scores = draw(5)
    names = [f'clip {i:02d}' for i in range(40)]
    copied = np.tile(truth, (4, 1)), np.tile(scores, (4, 1))
    alone = bootstrap_interval('lwlrap', truth, scores, names)
    grouped = bootstrap_interval('lwlrap', *copied, names * 4)
    assert bounds(grouped) == pytest.approx(bounds(alone), abs=1e-12)
    ungrouped = bootstrap_interval('lwlrap', *copied)
    assert ungrouped.high - ungrouped.low < 0.6 * (alone.high - alone.low)


def test_a_clip_with_an_empty_group_is_a_group_of_its_own():
    truth, scores = draw(6)
    without_groups = bootstrap_interval('lwlrap', truth, scores)
    empty = [''] * 20 + [None] * 10 + [float('nan')] * 10
    assert bootstrap_interval('lwlrap', truth, scores, empty) == without_groups
    assert bootstrap_interval('lwlrap', truth, scores, ['one'] * 20 + [''] * 20) != without_groups


def test_a_difference_compares_both_on_the_same_draws():
    truth, scores = draw(7, n=200)
    others = scores + np.random.default_rng(0).normal(size=scores.shape) * 0.01
    difference = bootstrap_difference('lwlrap', truth, scores, others)
    assert difference.value == lwlrap(truth, scores) - lwlrap(truth, others)
    alone = bootstrap_interval('lwlrap', truth, scores)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    swapped = bootstrap_difference('lwlrap', truth, others, scores)
    expected = -difference.value, -difference.high, -difference.low
    assert bounds(swapped) == pytest.approx(expected, abs=1e-12)
    assert bounds(bootstrap_difference('lwlrap', truth, scores, scores)) == (0, 0, 0)


@pytest.mark.parametrize('metric', METRICS)
def test_a_class_has_the_interval_of_its_own_metric(metric):
    truth, scores = draw(8)
    intervals = class_intervals(metric, truth, scores, [4, 1])
    values = metric_per_class(metric, truth, scores)

    def of_class(k):
        return lambda truth, scores: metric_per_class(class_metric(metric), truth, scores)[k]

    for k, interval in zip((4, 1), intervals, strict=True):
        slow = slow_interval(of_class(k), truth, scores)
        assert bounds(interval) == pytest.approx(bounds(slow), abs=1e-12)
        assert interval.value == pytest.approx(values[k], abs=1e-12)


def test_a_metric_over_columns_has_fewer_draws_of_a_large_set_and_says_so(monkeypatch):
    truth, scores = draw(9)
    monkeypatch.setitem(bootstrap_interval.__globals__, 'MAX_COUNTED', 300 * truth.size)
    interval = bootstrap_interval('macro_auc', truth, scores)
    assert interval.draws == 300
    assert str(interval).endswith('; 300 draws)')
    assert bootstrap_interval('lwlrap', truth, scores).draws == 1000
    monkeypatch.setitem(bootstrap_interval.__globals__, 'MAX_COUNTED', 1)
    assert bootstrap_interval('macro_auc', truth, scores).draws == 100


def test_an_interval_prints_its_bounds_and_its_repeated_draws():
    assert str(Interval(0.81234, 0.79, 0.83)) == '0.8123 (95 %: 0.7900 to 0.8300)'
    truth = np.array([[1.0], [1.0], [0.0]])
    interval = slow_interval(first_auc, truth, np.array([[2], [1], [0]]))
    assert interval.redrawn > 100
    assert f'{interval.redrawn} draws without a value' in str(interval)


def test_more_draws_without_a_value_than_with_one_are_refused():
    truth = np.arange(4)

    def only_on_the_whole_set(truth, scores):
        if len(set(truth.tolist())) < 4:
            raise KitError('clips are missing')
        return 0.5

    with pytest.raises(KitError, match=r'no value in 101 of \d+ draws of 4 groups'):
        slow_interval(only_on_the_whole_set, truth, truth, 100)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'groups': ['a'] * 39}, '39 groups for 40 clips'),
        ({'groups': ['a'] * 40}, '40 clips in 1 groups'),
        ({'metric': 'macroauc'}, "unknown metric 'macroauc': did you mean 'macro_auc'"),
        ({'scores': np.zeros((39, 6))}, r'scores \(39, 6\)'),
    ],
)
def test_input_that_cannot_be_resampled_is_refused(change, words):
    truth, scores = draw(12)
    arguments = {'metric': 'lwlrap', 'truth': truth, 'scores': scores, **change}
    with pytest.raises(KitError, match=words):
        bootstrap_interval(**arguments)
    with pytest.raises(KitError, match=words):
        bootstrap_difference(**arguments, others=arguments['scores'])
