"""Blends against their slow definitions, ties and missing models included."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.infer.blend import BLENDS, blend_scores, row_ranks
from kit.infer.predict import predict_clips
from kit.infer.submission import submit
from kit.sound.decode import Sound
from kit.sound.windows import ListeningConfig
from tests.behaviour.trained import Trained, loud_tagger, noise, write_folder

PRIORS = np.array([0.1, 0.4, 0.2, 0.4])


def slow_ranks(row: list[float]) -> list[float]:
    """The mean place of each value among all, ties sharing it, as a share of their number."""
    below = [sum(other < value for other in row) for value in row]
    equal = [sum(other == value for other in row) for value in row]
    return [(b + (e + 1) / 2) / len(row) for b, e in zip(below, equal, strict=True)]


def slow_blend(
    kind: str, scores: list[np.ndarray], done: list[np.ndarray], weights: list[float]
) -> np.ndarray:
    """Cell by cell, by the definition of each blend."""
    rows = []
    for r in range(len(done[0])):
        heard = [m for m in range(len(scores)) if done[m][r]]
        total = sum(weights[m] for m in heard)
        if not heard:
            rows.append(slow_ranks(PRIORS.tolist()) if kind == "rank" else PRIORS.tolist())
            continue
        row = []
        for k in range(len(PRIORS)):
            values = [float(scores[m][r][k]) for m in heard]
            if kind == "rank":
                values = [slow_ranks(scores[m][r].tolist())[k] for m in heard]
            parts = [
                weights[m] * (math.log(max(v, 1e-12)) if kind == "geometric" else v)
                for m, v in zip(heard, values, strict=True)
            ]
            row.append(math.exp(sum(parts) / total) if kind == "geometric" else sum(parts) / total)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("kind", BLENDS)
def test_every_blend_agrees_with_its_definition_whichever_models_heard_a_row(kind: str) -> None:
    rng = np.random.default_rng(0)
    heard = np.array(list(itertools.product([False, True], repeat=3)))
    done = [heard[:, m] for m in range(3)]
    scores = [rng.integers(0, 5, (8, 4)).astype(np.float32) / 4 for _ in range(3)]
    weights = [1.0, 2.5, 0.25]
    fast = blend_scores(scores, done, weights, PRIORS, kind)
    np.testing.assert_allclose(fast, slow_blend(kind, scores, done, weights), rtol=0, atol=1e-12)


def test_ranks_of_ties_are_their_mean_and_all_ranks_have_one_sum() -> None:
    rng = np.random.default_rng(1)
    for classes in (1, 2, 7):
        scores = rng.integers(0, 3, (50, classes)).astype(np.float64)
        ranks = row_ranks(scores)
        np.testing.assert_allclose(ranks, [slow_ranks(row) for row in scores.tolist()], atol=1e-12)
        np.testing.assert_allclose(ranks.sum(axis=1), (classes + 1) / 2, atol=1e-9)
    assert row_ranks(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("kind", BLENDS)
def test_a_model_that_missed_a_row_changes_neither_its_scale_nor_its_neighbours(kind: str) -> None:
    scores = [np.full((2, 4), 0.3), np.full((2, 4), 0.9)]
    both, first = np.array([True, True]), np.array([True, False])
    whole = blend_scores(scores, [both, both], [1.0, 3.0], PRIORS, kind)
    ragged = blend_scores(scores, [both, first], [1.0, 3.0], PRIORS, kind)
    np.testing.assert_allclose(ragged[0], whole[0], atol=1e-12)
    np.testing.assert_allclose(
        ragged[1], blend_scores(scores[:1], [both], [7.0], PRIORS, kind)[1], atol=1e-12
    )


def test_scores_of_zero_and_one_stay_finite_in_every_blend() -> None:
    scores = [np.array([[0.0, 1.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 0.0, 1.0]])]
    for kind in BLENDS:
        assert np.isfinite(blend_scores(scores, [np.array([True])] * 2, [1.0, 1.0], PRIORS, kind)).all()


def test_an_unknown_blend_lists_the_right_ones() -> None:
    with pytest.raises(KitError, match="geometric, mean, rank"):
        blend_scores([np.zeros((1, 4))], [np.array([True])], [1.0], PRIORS, "medain")


@pytest.mark.parametrize("kind", ["mean", "geometric"])
def test_uncalibrated_rank_scores_enter_no_mean(trained: Trained, kind: str) -> None:
    with pytest.raises(KitError, match=r"rank scores without a calibration.*--blend rank"):
        predict_clips([trained.mel[1], trained.uncalibrated], [Sound(noise(4000), 8000)], blend=kind)


def test_uncalibrated_rank_scores_blend_by_rank_as_calibrated_ones_do(trained: Trained, clips: Path) -> None:
    raw = predict_clips([trained.uncalibrated, trained.mel[1]], clips, blend="rank").probabilities
    fitted = predict_clips([trained.mel[0], trained.mel[1]], clips, blend="rank").probabilities
    np.testing.assert_allclose(raw, fitted, atol=1e-6)


def test_uncalibrated_rank_scores_are_not_pooled_over_windows(trained: Trained) -> None:
    windows = ListeningConfig(mode="windows", window_s=0.5, hop_s=0.5)
    with pytest.raises(KitError, match="pooled over windows"):
        predict_clips(trained.uncalibrated, [Sound(noise(20000), 8000)], blend="rank", listening=windows)


def test_a_clip_too_long_for_uncalibrated_ranks_costs_that_clip_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", ["a.wav", "b.wav"], samples=2000)
    write_folder(tmp_path / "in", ["long.wav"], samples=40000)
    tagger = loud_tagger(score="rank", listening=ListeningConfig(max_frames=64))
    report = submit(tagger, tmp_path / "in", tmp_path / "out.csv", blend="rank", progress=False).report
    assert report["rows_with_prior"] == 1 and "long.wav" in json.dumps(report)


def test_weights_that_are_not_one_positive_number_per_model_are_refused(trained: Trained) -> None:
    for weights in (
        [1.0],
        [1.0, 0.0],
        [1.0, -1.0],
        [1.0, float("nan")],
        [1.0, float("inf")],
        [1.0, 2.0, 3.0],
    ):
        with pytest.raises(KitError, match="one positive number per model"):
            predict_clips(list(trained.mel), [Sound(noise(4000), 8000)], weights=weights)


def test_a_wrong_blend_is_told_before_anything_is_heard(tmp_path: Path) -> None:
    heard: list[int] = []
    tagger = loud_tagger()
    tagger.network.register_forward_pre_hook(lambda *_: heard.append(1))
    write_folder(tmp_path / "in", ["a.wav"])
    with pytest.raises(KitError, match="geometric, mean, rank"):
        submit(tagger, tmp_path / "in", tmp_path / "out.csv", blend="avrage", progress=False)
    assert not heard
