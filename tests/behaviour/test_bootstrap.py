"""Bootstrap intervals equal those found by resampling clips, or whole groups of clips."""

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.labels.bootstrap import Interval, bootstrap_difference, bootstrap_interval, class_intervals
from kit.labels.metrics import METRICS, class_metric, log_losses, lwlrap, metric_per_class
from tests.behaviour.slow_metrics import SLOW_METRICS


def draw(seed, n=40, n_classes=6, unknown=0.2, share=0.3):
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < share).astype(float)
    scores = (generator.normal(size=truth.shape) + truth).round(1)
    scores = (scores / 12 + 0.5).clip(0, 1)
    truth[generator.random(truth.shape) < unknown] = np.nan
    return truth, scores


def unrecognised(metric):
    """The metric's slow definition, which the bootstrap computes on every draw in full."""
    return lambda truth, scores: SLOW_METRICS[metric](truth, scores)


def log_loss(truth, scores):
    return -log_losses(truth, 1 / (1 + np.exp(-scores)))[0]


def auc_per_class(truth, scores):
    return metric_per_class("macro_auc", truth, scores)


def first_auc(truth, scores):
    """NaN on a draw whose labels of the first class are all true or all false."""
    return auc_per_class(truth, scores)[0]


def bounds(interval):
    return interval.value, interval.low, interval.high


def slow_bounds(metric, truth, scores, groups, draws, level, seed):
    """Definition: draw groups with replacement, concatenate their rows, compute the metric, take quantiles."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    values = []
    while len(values) < draws:
        drawn = [names[i] for i in generator.integers(len(names), size=len(names))]
        rows = [i for name in drawn for i in range(len(groups)) if groups[i] == name]
        values.append(metric(truth[rows], scores[rows]))
    tail = (1 - level) / 2
    return metric(truth, scores), *np.quantile(values, [tail, 1 - tail])


@pytest.mark.parametrize("metric", [*METRICS, lwlrap, log_loss])
def test_an_interval_equals_its_definition(metric):
    truth, scores = draw(1)
    function = unrecognised(metric) if isinstance(metric, str) else metric
    groups = [f"recording {i // 3:02d}" for i in range(40)]
    interval = bootstrap_interval(metric, truth, scores, groups, draws=60, level=0.9, seed=5)
    expected = slow_bounds(function, truth, scores, groups, 60, 0.9, 5)
    assert bounds(interval) == pytest.approx(expected, abs=1e-12)
    assert interval.low < interval.value < interval.high
    assert (interval.level, interval.redrawn) == (0.9, 0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.3, 0.004])
def test_weighting_clips_equals_computing_every_draw_in_full(metric, share):
    """With few true labels some draws have no value and are repeated, unless the metric has a value without them."""
    truth, scores = draw(2, share=share)
    truth[3, 2] = truth[5, 2] = 1
    fast = bootstrap_interval(metric, truth, scores, draws=100)
    slow = bootstrap_interval(unrecognised(metric), truth, scores, draws=100)
    assert bounds(fast) == pytest.approx(bounds(slow), abs=1e-12)
    assert fast.redrawn == slow.redrawn
    assert (fast.redrawn > 0) == (share < 0.1 and metric not in ("micro_f1", "padded_cmap"))
    others = np.random.default_rng(0).permuted(scores, axis=1)
    fast = bootstrap_difference(metric, truth, scores, others, draws=100)
    slow = bootstrap_difference(unrecognised(metric), truth, scores, others, draws=100)
    assert bounds(fast) == pytest.approx(bounds(slow), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    truth, scores = draw(3)
    interval = bootstrap_interval("lwlrap", truth, scores)
    assert bootstrap_interval("lwlrap", truth, scores) == interval
    assert bootstrap_interval("lwlrap", truth, scores, seed=1) != interval


def test_with_groups_the_order_of_rows_does_not_matter():
    truth, scores = draw(4)
    groups = np.arange(40) // 3
    rows = np.random.default_rng(0).permutation(40)
    shuffled = bootstrap_interval("lwlrap", truth[rows], scores[rows], groups[rows])
    interval = bootstrap_interval("lwlrap", truth, scores, groups)
    assert bounds(shuffled) == pytest.approx(bounds(interval), abs=1e-12)


def test_copies_of_a_clip_in_its_group_do_not_narrow_the_interval():
    truth, scores = draw(5)
    names = [f"clip {i:02d}" for i in range(40)]
    copied = np.tile(truth, (4, 1)), np.tile(scores, (4, 1))
    alone = bootstrap_interval("lwlrap", truth, scores, names)
    grouped = bootstrap_interval("lwlrap", *copied, names * 4)
    assert bounds(grouped) == pytest.approx(bounds(alone), abs=1e-12)
    ungrouped = bootstrap_interval("lwlrap", *copied)
    assert ungrouped.high - ungrouped.low < 0.6 * (alone.high - alone.low)


def test_a_clip_with_an_empty_group_is_a_group_of_its_own():
    truth, scores = draw(6)
    without_groups = bootstrap_interval("lwlrap", truth, scores)
    empty = [""] * 20 + [None] * 10 + [float("nan")] * 10
    assert bootstrap_interval("lwlrap", truth, scores, empty) == without_groups
    assert bootstrap_interval("lwlrap", truth, scores, ["one"] * 20 + [""] * 20) != without_groups


def test_a_difference_compares_both_on_the_same_draws():
    truth, scores = draw(7, n=200)
    others = scores + np.random.default_rng(0).normal(size=scores.shape) * 0.01
    difference = bootstrap_difference("lwlrap", truth, scores, others)
    assert difference.value == lwlrap(truth, scores) - lwlrap(truth, others)
    alone = bootstrap_interval("lwlrap", truth, scores)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    swapped = bootstrap_difference("lwlrap", truth, others, scores)
    expected = -difference.value, -difference.high, -difference.low
    assert bounds(swapped) == pytest.approx(expected, abs=1e-12)
    assert bounds(bootstrap_difference("lwlrap", truth, scores, scores)) == (0, 0, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_has_the_interval_of_its_own_metric(metric):
    truth, scores = draw(8)
    intervals = class_intervals(metric, truth, scores, [4, 1])
    values = metric_per_class(metric, truth, scores)

    def of_class(k):
        return lambda truth, scores: metric_per_class(class_metric(metric), truth, scores)[k]

    for k, interval in zip((4, 1), intervals, strict=True):
        slow = bootstrap_interval(of_class(k), truth, scores, draws=1000)
        assert bounds(interval) == pytest.approx(bounds(slow), abs=1e-12)
        assert interval.value == pytest.approx(values[k], abs=1e-12)


def test_a_metric_over_columns_has_fewer_draws_of_a_large_set_and_says_so(monkeypatch):
    truth, scores = draw(9)
    monkeypatch.setitem(bootstrap_interval.__globals__, "MAX_COUNTED", 300 * truth.size)
    interval = bootstrap_interval("macro_auc", truth, scores)
    assert interval == bootstrap_interval("macro_auc", truth, scores, draws=300)
    assert str(interval).endswith("; 300 draws)")
    assert bootstrap_interval("lwlrap", truth, scores).draws == 1000
    monkeypatch.setitem(bootstrap_interval.__globals__, "MAX_COUNTED", 1)
    assert bootstrap_interval("macro_auc", truth, scores).draws == 100


def test_an_interval_prints_its_bounds_and_its_repeated_draws():
    assert str(Interval(0.81234, 0.79, 0.83)) == "0.8123 (0.95 within 0.7900 to 0.8300)"
    truth = np.array([[1.0], [1.0], [0.0]])
    interval = bootstrap_interval(first_auc, truth, [[2], [1], [0]])
    assert interval.redrawn > 100
    assert f"{interval.redrawn} draws without a value" in str(interval)


def test_more_draws_without_a_value_than_with_one_are_refused():
    truth = np.arange(4)

    def only_on_the_whole_set(truth, scores):
        if len(set(truth.tolist())) < 4:
            raise KitError("clips are missing")
        return 0.5

    with pytest.raises(KitError, match=r"no value in 101 of \d+ draws of 4 groups"):
        bootstrap_interval(only_on_the_whole_set, truth, truth, draws=100)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": ["a"] * 39}, "39 groups for 40 clips"),
        ({"groups": ["a"] * 40}, "40 clips in 1 groups"),
        ({"draws": 39}, "39 draws at level 0.95"),
        ({"level": 1.0}, "level 1"),
        ({"level": 0.0}, "level 0"),
        ({"metric": auc_per_class}, "wanted one number"),
        ({"metric": log_losses}, "wanted one number"),
        ({"metric": "macroauc"}, "unknown metric 'macroauc': did you mean 'macro_auc'"),
        ({"metric": lambda truth, scores: float("nan")}, "gave nan"),
        ({"scores": np.zeros((39, 6))}, r"scores \(39, 6\)"),
    ],
)
def test_input_that_cannot_be_resampled_is_refused(change, words):
    truth, scores = draw(12)
    arguments = {"metric": "lwlrap", "truth": truth, "scores": scores, **change}
    with pytest.raises(KitError, match=words):
        bootstrap_interval(**arguments)
    with pytest.raises(KitError, match=words):
        bootstrap_difference(**arguments, others=arguments["scores"])
