'''Per-class AUC and average precision, log losses and top-1 accuracy equal their definitions.'''

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import log_loss

from kit.core.errors import KitError
from kit.labels.metrics import compute_metric, log_losses, metric_per_class
from tests.behaviour.slow_metrics import slow_top1

auc_per_class = partial(metric_per_class, 'macro_auc')
average_precision_per_class = partial(metric_per_class, 'macro_ap')
top1_accuracy = partial(compute_metric, 'top1')
METRICS = [auc_per_class, average_precision_per_class, log_losses, top1_accuracy]
RANKING_METRICS = [auc_per_class, average_precision_per_class, top1_accuracy]


def draw(seed, n=60, n_classes=7, levels=None, unknown=0.0):
    '''Random truth and better-than-random scores; with few levels many scores are equal.'''
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < 0.3).astype(float)
    scores = generator.normal(size=truth.shape) + truth
    truth[generator.random(truth.shape) < unknown] = np.nan
    return truth, scores if levels is None else np.floor(scores * levels)


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores))


def slow_auc(truth, scores):
    '''Definition: over all pairs of a true and a false clip, 1 in the right order, 1/2 at a tie.'''
    gaps = scores[truth == 1][:, None] - scores[truth == 0]
    return np.mean((gaps > 0) + 0.5 * (gaps == 0)) if gaps.size else np.nan


def slow_average_precision(truth, scores):
    '''Definition: the mean over true clips of (true at least as high) / (known at least as high).'''
    shares = []
    for k in np.flatnonzero(truth == 1):
        above = ~np.isnan(truth) & (scores >= scores[k])
        shares.append((truth[above] == 1).mean())
    return np.mean(shares) if shares else np.nan


@pytest.mark.parametrize('levels', [None, 1, 3])
@pytest.mark.parametrize('unknown', [0.0, 0.4, 0.97])
def test_auc_and_average_precision_equal_their_definitions(levels, unknown):
    truth, scores = draw(1, levels=levels, unknown=unknown)
    truth[:, :3] = 0, 1, np.nan
    columns = list(zip(truth.T, scores.T, strict=True))
    auc = [slow_auc(*column) for column in columns]
    precision = [slow_average_precision(*column) for column in columns]
    np.testing.assert_allclose(auc_per_class(truth, scores), auc, atol=1e-12)
    np.testing.assert_allclose(average_precision_per_class(truth, scores), precision, atol=1e-12)


def test_auc_needs_both_kinds_of_labels_and_average_precision_a_true_one():
    truth = np.array([[1, 0, np.nan, 1], [1, 0, np.nan, 0]])
    scores = np.array([[0.2, 0.3, 0.4, 0.6], [0.1, 0.1, 0.1, 0.1]])
    with np.errstate(all='raise'):
        np.testing.assert_array_equal(auc_per_class(truth, scores), [np.nan, np.nan, np.nan, 1])
        np.testing.assert_array_equal(average_precision_per_class(truth, scores), [1, np.nan, np.nan, 1])
    for metric in RANKING_METRICS:
        for shape in ((0, 3), (3, 0), (3, 2)):
            with pytest.raises(KitError, match=f'none of the {shape[0]} clips has a true label'):
                metric(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize('dtype', [np.float64, np.float16])
def test_log_losses_equal_scikit_learn_s_log_loss_of_each_kind_of_label(dtype):
    truth, scores = draw(3, n=3000, unknown=0.4)
    probs = sigmoid(scores).astype(dtype)
    known = ~np.isnan(truth)
    labels, wide = truth[known], probs[known].astype(np.float64)
    ones = np.ones_like(labels)
    expected = [
        log_loss(ones, wide, sample_weight=labels, labels=[0, 1]),
        log_loss(0 * ones, wide, sample_weight=1 - labels, labels=[0, 1]),
    ]
    np.testing.assert_allclose(log_losses(truth, probs), expected, rtol=1e-12)


@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.float16, np.int64])
def test_certainty_costs_the_same_finite_loss_in_every_dtype(dtype):
    truth = np.array([[1, 0, 1, 0]])
    np.testing.assert_allclose(log_losses(truth, truth.astype(dtype)), 1e-7, rtol=1e-6)
    np.testing.assert_allclose(log_losses(truth, (1 - truth).astype(dtype)), -np.log(1e-7), rtol=1e-9)


def test_log_loss_is_nan_for_a_kind_of_label_that_is_missing():
    np.testing.assert_allclose(log_losses(np.array([[1, np.nan]]), np.array([[0.5, 0.9]])), [np.log(2), np.nan])
    np.testing.assert_allclose(log_losses(np.array([[0, np.nan]]), np.array([[0.5, 0.9]])), [np.nan, np.log(2)])


@pytest.mark.parametrize('levels', [None, 1, 3])
@pytest.mark.parametrize('unknown', [0.0, 0.4])
def test_top1_accuracy_equals_its_definition(levels, unknown):
    for seed in range(5):
        truth, scores = draw(seed, levels=levels, unknown=unknown)
        assert top1_accuracy(truth, scores) == pytest.approx(slow_top1(truth, scores), abs=1e-12)
    # An infinite score of an unknown class does not win against minus infinity.
    assert top1_accuracy([[np.nan, 1, 0]], [[np.inf, -np.inf, -np.inf]]) == 0.5


@pytest.mark.parametrize('metric', METRICS)
def test_unknown_labels_do_not_count_and_are_not_false(metric):
    truth, scores = draw(7, unknown=0.4)
    unknown = np.isnan(truth)
    scores = sigmoid(scores)
    expected = metric(truth, scores)
    for score in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(metric(truth, np.where(unknown, score, scores)), expected)
    assert not np.allclose(metric(np.nan_to_num(truth), np.where(unknown, 0.99, scores)), expected)


@pytest.mark.parametrize('metric', METRICS)
def test_the_order_of_clips_and_classes_does_not_matter(metric):
    truth, scores = draw(8, levels=2, unknown=0.3)
    scores = sigmoid(scores)
    expected = np.asarray(metric(truth, scores))
    generator = np.random.default_rng(0)
    rows = generator.permutation(len(truth))
    columns = generator.permutation(truth.shape[1])
    shuffled = metric(truth[rows][:, columns], scores[rows][:, columns])
    if expected.shape == columns.shape:
        expected = expected[columns]
    np.testing.assert_allclose(shuffled, expected, rtol=1e-12)


@pytest.mark.parametrize('metric', RANKING_METRICS)
def test_scores_of_any_type_and_infinite_scores_rank_as_numbers_do(metric):
    truth, scores = draw(9, levels=2)
    expected = metric(truth, scores)
    infinite = np.where(scores == scores.min(), -np.inf, scores)
    infinite[scores == scores.max()] = np.inf
    for other in (scores.astype(np.float16), scores.astype(np.int64), infinite):
        np.testing.assert_array_equal(metric(truth.astype(bool), other), expected)


@pytest.mark.parametrize('metric', RANKING_METRICS)
@pytest.mark.parametrize(
    ('truth', 'scores', 'words'),
    [
        (np.ones((3, 2)), np.ones((2, 3)), r'\(3, 2\) and scores \(2, 3\)'),
        (np.ones(3), np.ones(3), 'clips, classes'),
        (np.array([[1, 2.0]]), np.ones((1, 2)), '2 at row 0, column 1'),
        (np.array([[1, 0], [0, 1]]), np.array([[1, 0], [np.nan, 1]]), 'row 1, column 0'),
        (np.array([[1, np.nan]]), np.array([[1, np.nan]]), 'row 0, column 1'),
    ],
)
def test_input_that_cannot_be_scored_is_refused(metric, truth, scores, words):
    with pytest.raises(KitError, match=words):
        metric(truth, scores)


@pytest.mark.parametrize('metric', RANKING_METRICS)
def test_soft_truth_is_refused_where_it_cannot_rank(metric):
    with pytest.raises(KitError, match=r'0\.5 at row 0, column 1'):
        metric(np.array([[1, 0.5]]), np.ones((1, 2)))
