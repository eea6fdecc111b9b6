"""Per-class AUC and average precision, log losses and top-1 accuracy are what their definitions say."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from kit.core.errors import KitError
from kit.labels.metrics import (
    auc_per_class,
    average_precision_per_class,
    log_losses,
    top1_accuracy,
)


def draw(seed, n=60, n_classes=7, levels=None, unknown=0.0):
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < 0.3).astype(float)
    scores = generator.normal(size=truth.shape) + truth
    truth[generator.random(truth.shape) < unknown] = np.nan
    return truth, scores if levels is None else np.floor(scores * levels)


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores))


def slow_auc(truth, scores):
    """Definition: over all pairs of a true and a false clip, 1 in order, 1/2 at a tie."""
    pairs = [
        1.0 if s > z else 0.5 if s == z else 0.0
        for t, s in zip(truth, scores, strict=True)
        for f, z in zip(truth, scores, strict=True)
        if t == 1 and f == 0
    ]
    return np.mean(pairs) if pairs else np.nan


def slow_average_precision(truth, scores):
    """Definition: the mean over true clips of (true at least as high) / (known at least as high)."""
    shares = []
    for k in np.flatnonzero(truth == 1):
        above = [i for i in range(len(truth)) if not np.isnan(truth[i]) and scores[i] >= scores[k]]
        shares.append(sum(truth[i] == 1 for i in above) / len(above))
    return np.mean(shares) if shares else np.nan


def slow_log_losses(truth, probabilities):
    sums = np.zeros((2, 2))
    for t, p in zip(truth.ravel(), probabilities.ravel(), strict=True):
        if not np.isnan(t):
            p = min(max(float(p), 1e-7), 1 - 1e-7)
            sums += [[-t * np.log(p), -(1 - t) * np.log(1 - p)], [t, 1 - t]]
    return sums[0] / sums[1]


def slow_top1(truth, scores):
    """Definition: the expected hit of one known class drawn from the best-scored ones."""
    hits = []
    for row, score in zip(truth, scores, strict=True):
        known = [k for k in range(len(row)) if not np.isnan(row[k])]
        if any(row[k] == 1 for k in known):
            best = max(score[k] for k in known)
            hits.append(np.mean([row[k] == 1 for k in known if score[k] == best]))
    return np.mean(hits)


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("unknown", [0.0, 0.4, 0.97])
def test_auc_and_average_precision_agree_with_their_definitions_and_with_scikit_learn(levels, unknown):
    truth, scores = draw(1, levels=levels, unknown=unknown)
    truth[:, 0] = 0
    truth[:, 1] = 1
    truth[:, 2] = np.nan
    auc, precision = auc_per_class(truth, scores), average_precision_per_class(truth, scores)
    columns = list(zip(truth.T, scores.T, strict=True))
    np.testing.assert_allclose(auc, [slow_auc(t, s) for t, s in columns], atol=1e-12)
    np.testing.assert_allclose(precision, [slow_average_precision(t, s) for t, s in columns], atol=1e-12)
    for k, (t, s) in enumerate(columns):
        known = ~np.isnan(t)
        if 0 < t[known].sum() < known.sum():
            assert auc[k] == pytest.approx(roc_auc_score(t[known], s[known]), abs=1e-12)
            assert precision[k] == pytest.approx(average_precision_score(t[known], s[known]), abs=1e-12)


def test_a_class_without_both_kinds_has_no_auc_and_one_without_a_true_label_no_precision():
    truth = np.array([[1, 0, np.nan, 1], [1, 0, np.nan, 0]])
    scores = np.array([[0.2, 0.3, 0.4, 0.6], [0.1, 0.1, 0.1, 0.1]])
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(auc_per_class(truth, scores), [np.nan, np.nan, np.nan, 1])
        np.testing.assert_array_equal(average_precision_per_class(truth, scores), [1, np.nan, np.nan, 1])
    for measure in (auc_per_class, average_precision_per_class):
        assert np.isnan(measure(np.zeros((0, 3)), np.zeros((0, 3)))).all()
        assert measure(np.zeros((3, 0)), np.zeros((3, 0))).shape == (0,)


def test_equal_scores_give_an_auc_of_one_half_and_reversed_ones_its_complement():
    truth, scores = draw(2, levels=2, unknown=0.3)
    np.testing.assert_array_equal(auc_per_class(truth, np.zeros_like(scores)), np.full(7, 0.5))
    np.testing.assert_allclose(auc_per_class(truth, -scores), 1 - auc_per_class(truth, scores), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_log_losses_agree_with_their_definition_and_with_scikit_learn(dtype, unknown):
    truth, scores = draw(3, unknown=unknown)
    probabilities = sigmoid(scores).astype(dtype)
    got = log_losses(truth, probabilities)
    np.testing.assert_allclose(got, slow_log_losses(truth, probabilities), rtol=1e-12)
    wide = probabilities.astype(np.float64)
    for value, label in zip(got, (1, 0), strict=True):
        where = truth == label
        assert value == pytest.approx(log_loss(truth[where], wide[where], labels=[0, 1]), rel=1e-12)
    known = ~np.isnan(truth)
    both = np.average(got, weights=[(truth == 1).sum(), (truth == 0).sum()])
    assert both == pytest.approx(log_loss(truth[known], wide[known]), rel=1e-12)


def test_soft_truth_counts_on_both_sides_by_its_weight():
    truth, scores = draw(4, unknown=0.2)
    soft = np.clip(truth * 0.7 + 0.1, 0, 1)
    probabilities = sigmoid(scores)
    got = log_losses(soft, probabilities)
    np.testing.assert_allclose(got, slow_log_losses(soft, probabilities), rtol=1e-12)
    hard = np.concatenate([np.ones_like(soft), np.zeros_like(soft)])
    weight = np.concatenate([soft, 1 - soft]).ravel()
    twice = np.tile(probabilities, (2, 1)).ravel()
    for value, label in zip(got, (1, 0), strict=True):
        where = (hard.ravel() == label) & ~np.isnan(weight)
        expected = log_loss(hard.ravel()[where], twice[where], sample_weight=weight[where], labels=[0, 1])
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
def test_certainty_costs_the_same_finite_loss_in_every_dtype(dtype):
    truth = np.array([[1, 0, 1, 0]])
    right = log_losses(truth, truth.astype(dtype))
    np.testing.assert_allclose(right, 1e-7, rtol=1e-6)
    np.testing.assert_allclose(log_losses(truth, (1 - truth).astype(dtype)), -np.log(1e-7), rtol=1e-9)


def test_a_kind_of_label_that_is_not_there_has_no_loss():
    positives, negatives = log_losses([[1, np.nan]], [[0.5, 0.9]])
    assert positives == pytest.approx(np.log(2)) and np.isnan(negatives)
    positives, negatives = log_losses([[0, np.nan]], [[0.5, 0.9]])
    assert np.isnan(positives) and negatives == pytest.approx(np.log(2))


def test_large_sets_are_summed_in_pieces():
    truth, scores = draw(5, n=5000, n_classes=264, unknown=0.2)
    probabilities = sigmoid(scores)
    expected = [-np.log(probabilities[truth == 1]).mean(), -np.log1p(-probabilities[truth == 0]).mean()]
    np.testing.assert_allclose(log_losses(truth, probabilities), expected, rtol=1e-9)


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_top1_accuracy_agrees_with_its_definition(levels, unknown):
    for seed in range(5):
        truth, scores = draw(seed, levels=levels, unknown=unknown)
        assert top1_accuracy(truth, scores) == pytest.approx(slow_top1(truth, scores), abs=1e-12)


def test_top1_accuracy_leaves_unknown_classes_aside_and_shares_ties():
    assert top1_accuracy([[1, 0, np.nan]], [[0.5, 0.2, 0.9]]) == 1.0
    assert top1_accuracy([[1, 0, 0, 1]], [[0.5, 0.5, 0.5, 0.1]]) == pytest.approx(1 / 3)
    assert top1_accuracy([[1, 0], [0, 0], [np.nan, 0], [np.nan, np.nan]], np.ones((4, 2))) == 0.5
    assert top1_accuracy([[1, 0]], [[-np.inf, -np.inf]]) == 0.5
    assert top1_accuracy([[np.nan, 1, 0]], [[np.inf, -np.inf, -np.inf]]) == 0.5


def test_single_labels_give_the_accuracy_of_the_best_class():
    generator = np.random.default_rng(6)
    scores = generator.normal(size=(200, 5))
    label = generator.integers(5, size=200)
    assert top1_accuracy(np.eye(5)[label], scores) == (scores.argmax(axis=1) == label).mean()


MEASURES = [auc_per_class, average_precision_per_class, log_losses, top1_accuracy]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_score_of_an_unknown_label_changes_nothing(measure):
    truth, scores = draw(7, unknown=0.4)
    scores = sigmoid(scores)
    expected = measure(truth, scores)
    for other in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(measure(truth, np.where(np.isnan(truth), other, scores)), expected)
    as_false = np.nan_to_num(truth)
    assert not np.allclose(measure(as_false, np.where(np.isnan(truth), 0.99, scores)), expected)


@pytest.mark.parametrize("measure", MEASURES)
def test_neither_the_order_of_clips_nor_of_classes_matters(measure):
    truth, scores = draw(8, levels=2, unknown=0.3)
    scores = sigmoid(scores)
    expected = np.asarray(measure(truth, scores))
    generator = np.random.default_rng(0)
    rows, columns = generator.permutation(len(truth)), generator.permutation(truth.shape[1])
    np.testing.assert_allclose(measure(truth[rows], scores[rows]), expected, rtol=1e-12)
    got = measure(truth[:, columns], scores[:, columns])
    np.testing.assert_allclose(got, expected[columns] if measure in MEASURES[:2] else expected, rtol=1e-12)


@pytest.mark.parametrize("measure", [auc_per_class, average_precision_per_class, top1_accuracy])
def test_score_types_and_infinite_scores_rank_as_numbers_do(measure):
    truth, scores = draw(9, levels=2)
    expected = measure(truth, scores)
    wild = np.where(scores == scores.max(), np.inf, np.where(scores == scores.min(), -np.inf, scores))
    for given in (scores.astype(np.float16), scores.astype(np.float32), scores.astype(np.int64), wild):
        np.testing.assert_array_equal(measure(truth.astype(np.float32), given), expected)
        np.testing.assert_array_equal(measure(truth.astype(bool), given), expected)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("truth", "scores", "words"),
    [
        (np.ones((3, 2)), np.ones((2, 3)), r"\(3, 2\) and scores \(2, 3\)"),
        (np.ones(3), np.ones(3), "clips, classes"),
        (np.array([[1, 2.0]]), np.ones((1, 2)), "2 at row 0, column 1"),
        (np.array([[1, 0], [0, 1]]), np.array([[1, 0], [np.nan, 1]]), "row 1, column 0"),
        (np.array([[1, np.nan]]), np.array([[1, np.nan]]), "row 0, column 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(measure, truth, scores, words):
    with pytest.raises(KitError, match=words):
        measure(truth, scores)


@pytest.mark.parametrize("measure", [auc_per_class, average_precision_per_class, top1_accuracy])
def test_soft_truth_is_refused_where_it_cannot_rank(measure):
    with pytest.raises(KitError, match=r"0\.5 at row 0, column 1"):
        measure(np.array([[1, 0.5]]), np.ones((1, 2)))


@pytest.mark.parametrize(
    ("truth", "scores", "words"),
    [
        (np.array([[1, -0.1]]), np.ones((1, 2)), "truth is -0.1 at row 0, column 1"),
        (np.ones((1, 2)), np.array([[0.5, 1.5]]), "probability is 1.5 at row 0, column 1"),
        (np.array([[1, np.nan]]), np.array([[0.5, -3]]), "probability is -3 at row 0, column 1"),
        (np.full((4, 2), np.nan), np.ones((4, 2)), "none of the labels of 4 clips"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "none of the labels of 0 clips"),
    ],
)
def test_log_losses_refuse_what_is_no_probability(truth, scores, words):
    with pytest.raises(KitError, match=words):
        log_losses(truth, scores)


@pytest.mark.parametrize("truth", [np.zeros((4, 2)), np.full((4, 2), np.nan), np.zeros((0, 2))])
def test_top1_accuracy_needs_a_true_label(truth):
    with pytest.raises(KitError, match=f"none of the {len(truth)} clips"):
        top1_accuracy(truth, np.ones_like(truth))
