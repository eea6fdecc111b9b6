"""Bootstrap intervals hold what resampling clips, or whole groups of them, would show."""

import numpy as np
import pytest
from scipy.stats import binom

from kit.core.errors import KitError
from kit.labels.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from kit.labels.metrics import auc_per_class, log_losses, lwlrap, lwlrap_flat, top1_accuracy


def draw(seed, n=40, n_classes=6, unknown=0.2, share=0.3):
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < share).astype(float)
    scores = generator.normal(size=truth.shape) + truth
    truth[generator.random(truth.shape) < unknown] = np.nan
    return truth, scores


def again(metric):
    """The same metric as a stranger's function, of which the bootstrap knows no sums."""
    return lambda truth, scores: metric(truth, scores)


def bounds(interval):
    return interval.value, interval.low, interval.high


def slow_bounds(metric, truth, scores, groups, draws, level, seed):
    """Definition: groups drawn with replacement, their rows set under each other, scored, sorted, cut."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    values = []
    while len(values) < draws:
        drawn = [names[i] for i in generator.integers(len(names), size=len(names))]
        rows = [i for name in drawn for i in range(len(groups)) if groups[i] == name]
        try:
            values.append(metric(truth[rows], scores[rows]))
        except KitError:
            continue
    tail = (1 - level) / 2
    return metric(truth, scores), *np.quantile(values, [tail, 1 - tail])


@pytest.mark.parametrize("metric", [lwlrap, top1_accuracy, again(lwlrap), lwlrap_flat])
def test_an_interval_agrees_with_its_definition(metric):
    truth, scores = draw(1)
    groups = [f"recording {i // 3:02d}" for i in range(40)]
    got = bootstrap_interval(metric, truth, scores, groups, draws=60, level=0.9, seed=5)
    assert bounds(got) == pytest.approx(slow_bounds(metric, truth, scores, groups, 60, 0.9, 5), abs=1e-12)
    assert got.low < got.value < got.high and (got.level, got.redrawn) == (0.9, 0)


@pytest.mark.parametrize("metric", [lwlrap, top1_accuracy])
@pytest.mark.parametrize("share", [0.3, 0.004])
def test_reweighing_clips_gives_what_computing_anew_gives(metric, share):
    truth, scores = draw(2, share=share)
    truth[3, 2] = truth[5, 2] = 1
    fast = bootstrap_interval(metric, truth, scores, draws=100)
    slow = bootstrap_interval(again(metric), truth, scores, draws=100)
    assert bounds(fast) == pytest.approx(bounds(slow), abs=1e-12)
    assert fast.redrawn == slow.redrawn and (fast.redrawn > 0) == (share < 0.1)
    other = np.random.default_rng(0).permuted(scores, axis=1)
    fast = bootstrap_difference(metric, truth, scores, other, draws=100)
    slow = bootstrap_difference(again(metric), truth, scores, other, draws=100)
    assert bounds(fast) == pytest.approx(bounds(slow), abs=1e-12)


def test_the_interval_of_an_accuracy_is_that_of_its_binomial():
    label = np.arange(300) % 4
    scores = np.eye(4)[np.where(np.arange(300) < 210, label, label - 1)]
    got = bootstrap_interval(top1_accuracy, np.eye(4)[label], scores, draws=4000, level=0.9)
    assert got.value == 0.7
    assert got.low == pytest.approx(binom.ppf(0.05, 300, 0.7) / 300, abs=0.005)
    assert got.high == pytest.approx(binom.ppf(0.95, 300, 0.7) / 300, abs=0.005)


def test_about_ninety_in_a_hundred_intervals_hold_the_truth():
    held = 0
    for seed in range(200):
        right = np.random.default_rng(1000 + seed).random(80) < 0.6
        got = bootstrap_interval(
            top1_accuracy, np.tile([1, 0], (80, 1)), np.stack([right, ~right], axis=1), draws=200, level=0.9
        )
        held += got.low <= 0.6 <= got.high
    assert 170 <= held <= 190


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    truth, scores = draw(3)
    first = bootstrap_interval(lwlrap, truth, scores)
    assert bootstrap_interval(lwlrap, truth, scores) == first
    assert bootstrap_interval(lwlrap, truth, scores, seed=1) != first


def test_with_groups_the_order_of_rows_does_not_matter():
    truth, scores = draw(4)
    for groups in (np.arange(40), np.arange(40) // 3):
        rows = np.random.default_rng(0).permutation(40)
        got = bootstrap_interval(lwlrap, truth[rows], scores[rows], groups[rows])
        want = bootstrap_interval(lwlrap, truth, scores, groups)
        assert bounds(got) == pytest.approx(bounds(want), abs=1e-12)


def test_copies_of_a_clip_in_its_group_make_nothing_surer():
    truth, scores = draw(5)
    names = [f"clip {i:02d}" for i in range(40)]
    alone = bootstrap_interval(lwlrap, truth, scores, names)
    copied = bootstrap_interval(lwlrap, np.tile(truth, (4, 1)), np.tile(scores, (4, 1)), names * 4)
    assert bounds(copied) == pytest.approx(bounds(alone), abs=1e-12)
    blind = bootstrap_interval(lwlrap, np.tile(truth, (4, 1)), np.tile(scores, (4, 1)))
    assert blind.high - blind.low < 0.6 * (alone.high - alone.low)


def test_a_clip_without_a_group_stands_alone():
    truth, scores = draw(6)
    without = bootstrap_interval(lwlrap, truth, scores)
    assert bootstrap_interval(lwlrap, truth, scores, [""] * 20 + [None] * 10 + [float("nan")] * 10) == without
    assert bootstrap_interval(lwlrap, truth, scores, ["one"] * 20 + [""] * 20) != without


def test_a_difference_is_paired():
    truth, scores = draw(7, n=200)
    other = scores + np.random.default_rng(0).normal(size=scores.shape) * 0.1
    got = bootstrap_difference(lwlrap, truth, scores, other)
    assert got.value == lwlrap(truth, scores) - lwlrap(truth, other)
    alone = bootstrap_interval(lwlrap, truth, scores)
    assert got.high - got.low < 0.5 * (alone.high - alone.low)
    swapped = bootstrap_difference(lwlrap, truth, other, scores)
    assert bounds(swapped) == pytest.approx((-got.value, -got.high, -got.low), abs=1e-12)
    assert bounds(bootstrap_difference(lwlrap, truth, scores, scores)) == (0, 0, 0)
    worse = bootstrap_difference(lwlrap, truth, scores, -scores)
    assert worse.low > 0


def test_any_function_of_rows_can_be_doubted():
    truth, scores = draw(8)

    def macro_auc(truth, scores):
        return np.nanmean(auc_per_class(truth, scores))

    def loss(truth, scores):
        return log_losses(truth, 1 / (1 + np.exp(-scores)))[0]

    for metric in (macro_auc, loss):
        got = bootstrap_interval(metric, truth, scores, draws=40)
        assert got.low < got.value == metric(truth, scores) < got.high


def test_scores_of_unknown_labels_change_no_interval():
    truth, scores = draw(9, unknown=0.5)
    got = bootstrap_interval(lwlrap, truth, np.where(np.isnan(truth), 100, scores))
    assert got == bootstrap_interval(lwlrap, truth, scores)


def test_draws_without_a_value_are_made_anew_and_said():
    truth, scores = np.zeros((10, 3)), draw(10, n=10, n_classes=3)[1]
    truth[[2, 5], [0, 1]] = 1
    for metric in (lwlrap, again(lwlrap)):
        got = bootstrap_interval(metric, truth, scores)
        assert np.isfinite([got.low, got.high]).all() and 50 < got.redrawn < 250
        assert f"{got.redrawn} draws without a value" in str(got)
    everything_known_true = np.array([[1.0], [1.0], [0.0]])
    got = bootstrap_interval(lambda t, s: auc_per_class(t, s)[0], everything_known_true, [[2], [1], [0]])
    assert got.redrawn > 100


def test_more_draws_without_a_value_than_with_one_are_refused():
    truth, scores = draw(11, n=4, unknown=0)
    truth = np.arange(4)

    def only_the_whole_set(truth, scores):
        if len(set(truth.tolist())) < 4:
            raise KitError("not all are here")
        return 0.5

    with pytest.raises(KitError, match=r"no value in 101 of \d+ draws of 4 groups"):
        bootstrap_interval(only_the_whole_set, truth, scores, draws=100)


def test_an_interval_says_itself_in_one_line():
    assert str(Interval(0.81234, 0.79, 0.83)) == "0.8123 (0.95 within 0.7900 to 0.8300)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": ["a"] * 39}, "39 groups for 40 clips"),
        ({"groups": ["a"] * 40}, "40 clips in 1 groups"),
        ({"draws": 39}, "39 draws at level 0.95"),
        ({"draws": 0}, "0 draws"),
        ({"level": 1.0}, "level 1"),
        ({"level": 0.0}, "level 0"),
        ({"metric": auc_per_class}, "wanted one number"),
        ({"metric": log_losses}, "probability is"),
        ({"metric": lambda truth, scores: float("nan")}, "gave nan"),
        ({"scores": np.zeros((39, 6))}, r"scores \(39, 6\)"),
    ],
)
def test_what_cannot_be_resampled_is_refused(change, words):
    truth, scores = draw(12)
    given = {"metric": lwlrap, "truth": truth, "scores": scores, **change}
    with pytest.raises(KitError, match=words):
        bootstrap_interval(**given)
    with pytest.raises(KitError, match=words):
        bootstrap_difference(
            given.pop("metric"), given.pop("truth"), given["scores"], given.pop("scores"), **given
        )


def test_one_clip_is_not_enough():
    with pytest.raises(KitError, match="1 clips in 1 groups"):
        bootstrap_interval(lwlrap, [[1, 0]], [[0.5, 0.2]])
