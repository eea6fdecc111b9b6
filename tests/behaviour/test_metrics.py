'''lwlrap and the other metrics of a recipe equal their definitions, and mask unknown labels.'''

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from kit.core.errors import KitError
from kit.labels.metrics import (
    METRICS,
    class_metric,
    compute_metric,
    lwlrap,
    metric_per_class,
    precision_clip_sums,
    ranking_masks,
)
from tests.behaviour.slow_metrics import SLOW_METRICS


def label_precision(truth, scores, k):
    '''Definition: (true labels with at least the score of label k) / (known labels with at least its score).'''
    above = ~np.isnan(truth) & (scores >= scores[k])
    return (truth[above] == 1).mean()


def slow_lwlrap(truth, scores):
    '''Definition: the mean precision of all true labels; each class's mean precision; each class's share.'''
    of_class = [[] for _ in range(truth.shape[1])]
    for row, score in zip(truth, scores, strict=True):
        for k in np.flatnonzero(row == 1):
            of_class[k].append(label_precision(row, score, k))
    counts = np.array([len(values) for values in of_class])
    precisions = np.array([np.mean(values) if values else 0.0 for values in of_class])
    return np.concatenate(of_class).mean(), precisions, counts / counts.sum()


def lwlrap_flat(truth, scores):
    '''Reference: lwlrap over one list of all known labels is the micro average precision, as scikit-learn has it.'''
    known = ~np.isnan(truth)
    return average_precision_score(truth[known], scores[known])


def draw(seed, n=40, n_classes=9, levels=None, unknown=0.0):
    '''Random truth and scores; with few levels many scores are equal.'''
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < 0.25).astype(float)
    truth[generator.random(truth.shape) < unknown] = np.nan
    scores = generator.normal(size=truth.shape)
    return truth, scores if levels is None else np.floor(scores * levels)


@pytest.mark.parametrize('levels', [None, 1, 3])
@pytest.mark.parametrize('unknown', [0.0, 0.4])
def test_lwlrap_equals_its_definition(levels, unknown):
    for seed in range(3):
        truth, scores = draw(seed, levels=levels, unknown=unknown)
        expected, precisions, weights = slow_lwlrap(truth, scores)
        assert lwlrap(truth, scores) == pytest.approx(expected, abs=1e-12)
        of_classes = np.where(weights > 0, precisions, np.nan)
        np.testing.assert_allclose(metric_per_class('lwlrap', truth, scores), of_classes, atol=1e-12)
        assert precisions @ weights == pytest.approx(expected, abs=1e-12)
        flat_truth, flat_scores = truth.reshape(1, -1), scores.reshape(1, -1)
        flat, _, _ = slow_lwlrap(flat_truth, flat_scores)
        assert lwlrap_flat(truth, scores) == pytest.approx(flat, abs=1e-12)
        assert lwlrap(flat_truth, flat_scores) == pytest.approx(flat, abs=1e-12)


def test_lwlrap_does_not_compare_clips():
    truth, scores = draw(12)
    shifted = scores + np.random.default_rng(0).normal(size=(len(scores), 1)) * 10
    assert lwlrap(truth, shifted) == pytest.approx(lwlrap(truth, scores), abs=1e-12)
    assert lwlrap_flat(truth, shifted) != pytest.approx(lwlrap_flat(truth, scores), abs=1e-3)


def test_unknown_labels_are_neither_ranked_nor_counted_as_false():
    truth, scores = draw(13, unknown=0.4)
    unknown = np.isnan(truth)
    expected = lwlrap(truth, scores)
    for score in (np.inf, -np.inf, 0.0, scores.max()):
        assert lwlrap(truth, np.where(unknown, score, scores)) == expected
    assert lwlrap(np.nan_to_num(truth), np.where(unknown, 100, scores)) < expected


def test_clips_without_true_labels_do_not_count():
    truth, scores = draw(6)
    more = np.concatenate([truth, np.zeros_like(truth), np.full_like(truth, np.nan)])
    assert lwlrap(more, np.tile(scores, (3, 1))) == pytest.approx(lwlrap(truth, scores), abs=1e-12)


def test_perfect_scores_give_one_and_equal_scores_the_share_of_true_labels():
    truth, _ = draw(7)
    assert lwlrap(truth, truth) == 1.0
    assert lwlrap(np.eye(8), np.zeros((8, 8))) == 1 / 8


def test_a_large_set_equals_the_sums_of_its_clips_and_parts():
    '''5000 clips of 264 classes are ranked in several chunks.'''
    truth, scores = draw(8, n=5000, n_classes=264, levels=20, unknown=0.1)
    truth[7] = np.nan
    precisions, n_true = precision_clip_sums(*ranking_masks(truth, scores))
    np.testing.assert_array_equal(n_true, (truth == 1).sum(axis=1))
    assert precisions[7] == n_true[7] == 0
    assert lwlrap(truth, scores) == pytest.approx(precisions.sum() / n_true.sum(), abs=1e-12)
    for rows in (slice(0, 1234), slice(1234, 5000)):
        expected = precisions[rows].sum() / n_true[rows].sum()
        assert lwlrap(truth[rows], scores[rows]) == pytest.approx(expected, abs=1e-12)


def test_scores_of_any_type_and_infinite_scores_rank_as_numbers_do():
    truth, scores = draw(9, levels=2)
    metric, expected = lwlrap, lwlrap(truth, scores)
    assert metric(truth.astype(bool), scores.astype(np.float16)) == expected
    assert metric(truth.astype(np.int8), scores.astype(np.int64)) == expected
    lowest = np.where(scores == scores.min(), -np.inf, scores)
    assert metric(truth, np.where(scores == scores.max(), np.inf, lowest)) == expected
    assert metric(truth.tolist(), scores.tolist()) == expected


@pytest.mark.parametrize('metric', [lwlrap, partial(metric_per_class, 'lwlrap')])
@pytest.mark.parametrize(
    ('truth', 'scores', 'words'),
    [
        (np.ones((3, 2)), np.ones((2, 3)), r'\(3, 2\) and scores \(2, 3\)'),
        (np.ones(3), np.ones(3), 'clips, classes'),
        (np.array([[1, 0.5]]), np.ones((1, 2)), '0.5 at row 0, column 1'),
        (np.array([[1, 0], [0, 1]]), np.array([[1, 0], [np.nan, 1]]), 'row 1, column 0 is NaN'),
        (np.array([[1, np.nan]]), np.array([[1, np.nan]]), 'row 0, column 1 is NaN'),
        (np.full((4, 2), np.nan), np.ones((4, 2)), 'none of the 4 clips'),
        (np.zeros((0, 2)), np.ones((0, 2)), 'none of the 0 clips'),
    ],
)
def test_input_that_cannot_be_scored_is_refused(metric, truth, scores, words):
    with pytest.raises(KitError, match=words):
        metric(truth, scores)


def draw_probabilities(seed, n=40, n_classes=7, levels=4, unknown=0.3):
    '''Random truth and probabilities of few levels, with classes that are all true, all false or all unknown.'''
    truth, scores = draw(seed, n, n_classes, levels, unknown)
    truth[:, :3] = 1, 0, np.nan
    return truth, (scores / 5 / (levels or 1) + 0.5).clip(0, 1)


@pytest.mark.parametrize('name', METRICS)
@pytest.mark.parametrize('levels', [None, 1, 4])
@pytest.mark.parametrize('unknown', [0.0, 0.3, 0.9])
def test_every_metric_equals_its_definition_with_ties_and_unknown_labels(name, levels, unknown):
    for seed in range(3):
        truth, probs = draw_probabilities(seed, levels=levels, unknown=unknown)
        expected = SLOW_METRICS[name](truth, probs)
        assert compute_metric(name, truth, probs) == pytest.approx(expected, abs=1e-12)
        assert compute_metric(name, truth.tolist(), probs.tolist()) == pytest.approx(expected, abs=1e-12)
        values = metric_per_class(name, truth, probs)
        for k in range(truth.shape[1]):
            column = truth[:, [k]], probs[:, [k]]
            if class_metric(name) == 'lwlrap' or not (truth[:, k] == 1).any():
                assert np.isnan(values[k]) == (not (truth[:, k] == 1).any())
            else:
                assert values[k] == pytest.approx(SLOW_METRICS[name](*column), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize('name', METRICS)
def test_the_order_of_clips_and_classes_and_the_score_of_unknown_labels_do_not_matter(name):
    truth, probs = draw_probabilities(5)
    expected = compute_metric(name, truth, probs)
    generator = np.random.default_rng(0)
    rows = generator.permutation(len(truth))
    columns = generator.permutation(truth.shape[1])
    shuffled = compute_metric(name, truth[rows][:, columns], probs[rows][:, columns])
    assert shuffled == pytest.approx(expected, abs=1e-12)
    for score in (0.0, 0.5, 1.0):
        assert compute_metric(name, truth, np.where(np.isnan(truth), score, probs)) == expected
    unknown_is_false = np.nan_to_num(truth), np.where(np.isnan(truth), 1.0, probs)
    assert compute_metric(name, *unknown_is_false) < expected


@pytest.mark.parametrize('name', METRICS)
def test_true_labels_first_are_best_and_a_metric_over_rows_does_not_compare_clips(name):
    truth, probs = draw_probabilities(6)
    best = np.where(truth == 1, 0.9, 0.1) - np.arange(truth.shape[1]) / 100
    assert compute_metric(name, truth, best) == pytest.approx(1.0)
    if name == 'micro_f1':  # it has a threshold
        return
    lower = probs * np.random.default_rng(0).uniform(0.1, 1, size=(len(probs), 1))
    is_same = compute_metric(name, truth, lower) == pytest.approx(compute_metric(name, truth, probs), abs=1e-9)
    assert is_same == (METRICS[name].clip_sums is not None)


def test_a_tie_with_false_labels_counts_against_a_true_one_in_map3():
    truth = np.eye(4)[[0]]
    for scores, expected in (([4, 3, 2, 1], 1), ([3, 4, 2, 1], 1 / 2), ([1, 1, 0, 0], 1 / 2), ([1, 1, 1, 1], 0)):
        assert compute_metric('map3', truth, [scores]) == pytest.approx(expected)


@pytest.mark.parametrize('name', METRICS)
def test_a_metric_without_a_value_says_what_it_needs(name):
    false = np.zeros((4, 2))
    unknown = np.full((4, 2), np.nan)
    with pytest.raises(KitError, match='4 clips'):
        compute_metric(name, unknown, false)
    if name == 'micro_f1':
        assert compute_metric(name, false, false) == 1  # no label is true and none is predicted
        assert compute_metric(name, false, false + 0.5) == 0
    else:
        with pytest.raises(KitError, match='none of the 4 clips has a true label'):
            compute_metric(name, false, false)
    if name == 'macro_auc':
        with pytest.raises(KitError, match='macro_auc has no value on 4 clips: it needs known labels, both true and'):
            compute_metric(name, 1 - false, false)
    if name in ('micro_f1', 'padded_cmap'):
        with pytest.raises(KitError, match='the probability is 7 at row 0, column 0, wanted 0 to 1'):
            compute_metric(name, 1 - false, false + 7)
    with pytest.raises(KitError, match="unknown metric 'macro-auc': did you mean 'macro_auc'"):
        compute_metric('macro-auc', false, false)
