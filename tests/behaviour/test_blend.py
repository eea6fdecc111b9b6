'''Blends against their slow definitions, ties and missing models included.'''

import inspect
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.infer.blend import BLENDS, blend_scores, column_ranks, row_ranks
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from tests.behaviour.trained import LoudBands, Trained, loud_tagger, noise, write_folder

PRIORS = np.array([0.1, 0.4, 0.2, 0.4])


def slow_ranks(row: list[float]) -> list[float]:
    '''The mean place of each value among all, ties sharing it, as a share of their number.'''
    below = [sum(other < value for other in row) for value in row]
    equal = [sum(other == value for other in row) for value in row]
    return [(b + (e + 1) / 2) / len(row) for b, e in zip(below, equal, strict=True)]


def enter(kind: str, row: list[float], k: int) -> float:
    '''What a model's score of class k puts into the weighted sum, by definition.'''
    others = [row[k] - value for i, value in enumerate(row) if i != k]
    reach = max(row) - min(row)
    return {
        'mean': row[k],
        'geometric': math.log(max(row[k], 1e-12)),
        'power': row[k] ** 2,
        'rank': slow_ranks(row)[k],
        'scaled': (row[k] - min(row)) / reach if reach else 0.5,
        'differences': sum(others) / len(others) if others else 0.0,
    }[kind]


LEAVE = {'geometric': math.exp, 'power': math.sqrt, 'differences': lambda value: (1 + value) / 2}


def leave(kind: str, value: float) -> float:
    '''The weighted mean of what entered, as a score.'''
    return LEAVE.get(kind, float)(value)


def slow_blend(
    kind: str, scores: list[np.ndarray], done: list[np.ndarray], weights: list[float], priors: np.ndarray = PRIORS
) -> np.ndarray:
    '''Cell by cell, by the definition of each blend whose rows stand alone.'''
    rows = []
    for r in range(len(done[0])):
        scored = [m for m in range(len(scores)) if done[m][r]]
        total = sum(weights[m] for m in scored)
        if not scored:
            as_scored = kind in ('rank', 'scaled', 'differences')
            own = priors.tolist()
            rows.append([leave(kind, enter(kind, own, k)) if as_scored else own[k] for k in range(len(own))])
            continue
        row = []
        for k in range(len(priors)):
            parts = [weights[m] * enter(kind, [float(v) for v in scores[m][r]], k) for m in scored]
            row.append(leave(kind, sum(parts) / total))
        rows.append(row)
    return np.array(rows)


def slow_column_blend(scores: list[np.ndarray], done: list[np.ndarray], weights: list[float]) -> np.ndarray:
    '''Mid-ranks in each column by those models that scored all that was scored; where none did, by all of them.'''
    n_rows, models = len(done[0]), range(len(done))
    scored = [r for r in range(n_rows) if any(done[m][r] for m in models)]
    used = [m for m in models if all(done[m][r] for r in scored)] or list(models)
    out = np.zeros((n_rows, len(PRIORS)))
    for k in range(len(PRIORS)):
        places: list[dict[int, float]] = []
        for m in used:
            column = {r: float(scores[m][r, k]) if done[m][r] else PRIORS[k] for r in range(n_rows)}
            column = {r: value for r, value in column.items() if done[m][r] or r not in scored}
            ranks = slow_ranks(list(column.values()))
            places.append(dict(zip(column, [rank - 0.5 / len(column) for rank in ranks], strict=True)))
        for r in range(n_rows):
            parts = [(weights[m], place[r]) for m, place in zip(used, places, strict=True) if r in place]
            out[r, k] = sum(w * rank for w, rank in parts) / sum(w for w, _ in parts)
    return out


PER_ROW = [kind for kind, how in BLENDS.items() if not how.whole_set]


def quarters(seed: int, rows: int = 8) -> list[np.ndarray]:
    '''Scores of three models, with many ties; one row of one model is constant.'''
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 5, (rows, 4)).astype(np.float32) / 4 for _ in range(3)]
    scores[0][rows // 2] = 0.25
    return scores


@pytest.mark.parametrize('kind', PER_ROW)
def test_every_blend_agrees_with_its_definition_whichever_models_scored_a_row(kind: str) -> None:
    scored = np.array(list(itertools.product([False, True], repeat=3)))
    done = [scored[:, m] for m in range(3)]
    scores, weights = quarters(0), [1.0, 2.5, 0.25]
    fast = blend_scores(scores, done, weights, PRIORS, kind)
    np.testing.assert_allclose(fast, slow_blend(kind, scores, done, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    'scored',
    [[0, 0, 0, 0], [7, 7, 7, 7], [7, 3, 6, 7], [3, 3, 1, 3, 0], [1, 2, 4, 0], [7, 5, 0, 5, 4, 4, 0], [0, 2, 6]],
)
def test_column_ranks_use_only_models_that_scored_every_scored_row(scored: list[int]) -> None:
    done = [np.array([bits >> m & 1 for bits in scored], dtype=bool) for m in range(3)]
    scores, weights = quarters(1, len(scored)), [1.0, 2.5, 0.25]
    fast = blend_scores(scores, done, weights, PRIORS, 'column_rank')
    np.testing.assert_allclose(fast, slow_column_blend(scores, done, weights), rtol=0, atol=1e-12)


def test_only_a_blend_of_the_whole_set_depends_on_other_rows_and_none_is_the_default() -> None:
    scores, every = [np.random.default_rng(m).random((6, 4)) for m in range(2)], [np.ones(6, bool)] * 2
    for kind, how in BLENDS.items():
        full = blend_scores(scores, every, [1.0, 2.0], PRIORS, kind)
        first = blend_scores([s[:2] for s in scores], [d[:2] for d in every], [1.0, 2.0], PRIORS, kind)
        assert np.allclose(full[:2], first, rtol=0, atol=1e-15) != how.whole_set, kind
    for command in (submit, predict_clips, blend_scores):
        default = [inspect.signature(command).parameters[word].default for word in ('blend', 'kind')
                   if word in inspect.signature(command).parameters]  # fmt: skip
        assert default == ['mean']


@pytest.mark.parametrize('kind', BLENDS)
def test_the_order_of_rows_changes_no_rows_answer(kind: str) -> None:
    scores, order = quarters(3), np.random.default_rng(0).permutation(8)
    done = [np.arange(8) != m for m in range(3)]
    straight = blend_scores(scores, done, [1.0, 2.0, 3.0], PRIORS, kind)
    mixed = blend_scores([s[order] for s in scores], [d[order] for d in done], [1.0, 2.0, 3.0], PRIORS, kind)
    np.testing.assert_array_equal(mixed, straight[order])


@pytest.mark.parametrize(
    'weights', [[1.0], [[1.0, 2.0]] * 2, [1.0, -1.0], [1.0, math.nan], [1.0, math.inf], [[[1.0]], [[1.0]]], ()]
)
def test_weights_of_another_shape_than_the_models_are_refused(weights: Any) -> None:
    with pytest.raises(KitError, match='one positive number per model, 2 of them'):
        blend_scores([np.zeros((1, 4))] * 2, [np.array([True])] * 2, weights, PRIORS)


def test_a_clips_free_constant_and_its_scale_do_not_move_what_is_free_of_them() -> None:
    rng = np.random.default_rng(5)
    scores, done = rng.normal(size=(6, 4)), [np.ones(6, bool)]
    moved = scores * rng.uniform(0.5, 3, (6, 1)) + rng.normal(size=(6, 1))
    for kind, how in BLENDS.items():
        if how.any_scale:
            one, other = (blend_scores([s], done, [1.0], PRIORS, kind) for s in (scores, moved))
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_ranks_of_ties_are_their_mean_and_all_ranks_have_one_sum() -> None:
    rng = np.random.default_rng(1)
    for classes in (1, 2, 7):
        scores = rng.integers(0, 3, (50, classes)).astype(np.float64)
        ranks = row_ranks(scores)
        np.testing.assert_allclose(ranks, [slow_ranks(row) for row in scores.tolist()], atol=1e-12)
        np.testing.assert_allclose(ranks.sum(axis=1), (classes + 1) / 2, atol=1e-9)
    assert row_ranks(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize('kind', BLENDS)
def test_scores_of_zero_and_one_a_constant_set_one_row_and_one_class_stay_within_zero_and_one(kind: str) -> None:
    for zeros in ([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]], [[0.0] * 4] * 3, [[1.0] * 4], [[1.0], [0.0]], [[0.0]]):
        scores = [np.array(zeros), 1 - np.array(zeros), np.full(np.shape(zeros), 0.3)]
        done = [np.ones(len(zeros), bool), np.arange(len(zeros)) > 0, np.zeros(len(zeros), bool)]
        for priors in (PRIORS, np.zeros(4), np.ones(4)):
            blended = blend_scores(scores, done, [1.0, 2.0, 3.0], priors[: len(zeros[0])], kind)
            assert blended.shape == np.shape(zeros)
            assert np.isfinite(blended).all() and blended.min() >= 0 and blended.max() <= 1


def test_without_masks_and_weights_all_models_count_alike_in_all_rows() -> None:
    scores = [np.array([[0.1, 0.9]]), np.array([[0.5, 0.3]])]
    np.testing.assert_allclose(blend_scores(scores), [[0.3, 0.6]])
    np.testing.assert_allclose(blend_scores(scores, kind='geometric'), np.sqrt(scores[0] * scores[1]))


def test_an_unknown_blend_lists_the_right_ones() -> None:
    with pytest.raises(KitError, match='geometric, mean, power, rank, scaled'):
        blend_scores([np.zeros((1, 4))], [np.array([True])], [1.0], PRIORS, 'medain')


@pytest.mark.parametrize('kind', [kind for kind, how in BLENDS.items() if not how.any_scale])
def test_uncalibrated_rank_scores_enter_no_mean(trained: Trained, kind: str) -> None:
    with pytest.raises(KitError, match=r'rank scores without a calibration.*--blend rank'):
        predict_clips([trained.mel[1], trained.uncalibrated], [Sound(noise(4000), 8000)], blend=kind)


def test_uncalibrated_rank_scores_blend_by_rank_as_calibrated_ones_do(trained: Trained, clips: Path) -> None:
    raw = predict_clips([trained.uncalibrated, trained.mel[1]], clips, blend='rank').probabilities
    fitted = predict_clips([trained.mel[0], trained.mel[1]], clips, blend='rank').probabilities
    np.testing.assert_allclose(raw, fitted, atol=1e-6)


def test_uncalibrated_rank_scores_may_be_scaled_row_by_row(trained: Trained, clips: Path) -> None:
    scaled = predict_clips(trained.uncalibrated, clips, blend='scaled').probabilities
    assert (scaled.min(axis=1) == 0).all() and (scaled.max(axis=1) == 1).all()
    both = predict_clips([trained.uncalibrated, trained.mel[1]], clips, blend='scaled').probabilities
    assert both.min() >= 0 and both.max() <= 1


def test_clips_are_blended_by_column_ranks_when_asked(tmp_path: Path) -> None:
    write_folder(tmp_path, ['a.wav', 'b.wav', 'c.wav'], samples=4000)
    taggers = [loud_tagger(LoudBands(3)), loud_tagger(LoudBands(3))]
    with torch.no_grad():
        taggers[1].network.scale.mul_(-1.0)
    one = [predict_clips(tagger, tmp_path, blend='column_rank').probabilities for tagger in taggers]
    np.testing.assert_allclose(one[0], column_ranks(predict_clips(taggers[0], tmp_path).probabilities), atol=1e-6)
    both = predict_clips(taggers, tmp_path, blend='column_rank', weights=[3.0, 1.0]).probabilities
    np.testing.assert_allclose(both, (3 * one[0] + one[1]) / 4, atol=1e-6)


def test_uncalibrated_rank_scores_are_not_pooled_over_windows(trained: Trained) -> None:
    windows = InferenceConfig(mode='windows', window_s=0.5, hop_s=0.5)
    with pytest.raises(KitError, match='pooled over windows'):
        predict_clips(trained.uncalibrated, [Sound(noise(20000), 8000)], blend='rank', inference=windows)


def test_a_clip_too_long_for_uncalibrated_ranks_costs_that_clip_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'], samples=2000)
    write_folder(tmp_path / 'in', ['long.wav'], samples=40000)
    tagger = loud_tagger(output='ranking', inference=InferenceConfig(max_frames=64))
    report = submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', blend='rank', progress=False).report
    assert report['rows_with_prior'] == 1 and 'long.wav' in json.dumps(report)


def test_weights_that_are_not_one_positive_number_per_model_are_refused(trained: Trained) -> None:
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float('nan')], [1.0, float('inf')], [1.0, 2.0, 3.0]):
        with pytest.raises(KitError, match='one positive number per model'):
            predict_clips(list(trained.mel), [Sound(noise(4000), 8000)], weights=weights)


def test_a_wrong_blend_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    scored: list[int] = []
    tagger = loud_tagger()
    tagger.network.register_forward_pre_hook(lambda *_: scored.append(1))
    write_folder(tmp_path / 'in', ['a.wav'])
    with pytest.raises(KitError, match='geometric, mean, power, rank, scaled'):
        submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', blend='avrage', progress=False)
    assert not scored
