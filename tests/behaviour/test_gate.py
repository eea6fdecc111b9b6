"""A step is applied where it was seen to help on clips it did not learn from, or where somebody insists."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas
import pytest

from kit.core.errors import KitError
from kit.infer.blend import fit_class_weights, fit_weights
from kit.infer.gate import (
    STEPS,
    EstimatedPriors,
    FittedWeights,
    Judged,
    NeighbourSmoothing,
    PriorOdds,
    RowSet,
    Step,
    TopMean,
    WindowChoice,
    cross_apply,
    evaluate_step,
)
from kit.infer.postprocess import estimate_prevalences, scale_odds, smooth_neighbours, weigh_by_recording
from kit.labels.bootstrap import bootstrap_difference
from kit.labels.metrics import lwlrap

CLASSES = 5


def negative_log_loss(truth: np.ndarray, scores: np.ndarray) -> float:
    """The greater, the better."""
    known = ~np.isnan(truth)
    return float(np.log(np.where(truth == 1, scores, 1 - scores)[known].clip(1e-7)).mean())


def recordings_of(steady: bool, n: int = 40, seed: int = 0) -> tuple[RowSet, np.ndarray, np.ndarray]:
    """Recordings of six windows whose labels stay all along, or change with each; scores are noisy. And folds."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"r{i}" for i in range(n)], 6)
    truth = (rng.random((n, 6, CLASSES)) < 0.3).astype(float)
    truth[:, :, 0] = np.arange(n)[:, None] % 2
    if steady:
        truth[:] = truth[:, :1]
    truth = truth.reshape(-1, CLASSES)
    scores = 1 / (1 + np.exp(-(2 * truth - 1 + 1.3 * rng.normal(size=truth.shape))))
    return (
        RowSet(scores, names.tolist(), np.tile(np.arange(6) * 5.0, n).tolist()),
        truth,
        np.arange(n * 6) // 6 % 4,
    )


def several(
    skill: Any, n: int = 200, classes: int = CLASSES, seed: int = 0
) -> tuple[RowSet, np.ndarray, np.ndarray]:
    """Models (or window lengths) of given skill, by model or by model and class. Shape: (m,) or (m, K)"""
    rng = np.random.default_rng(seed)
    skill = np.broadcast_to(np.reshape(skill, (len(skill), -1)), (len(skill), classes))
    truth = (rng.random((n, classes)) < 0.3).astype(float)
    noise = rng.normal(size=(len(skill), n, classes))
    scores = 1 / (1 + np.exp(-(skill[:, None] * (2 * truth - 1) + noise)))
    return RowSet(scores), truth, np.arange(n) % 5


def test_a_step_that_helps_is_admitted_and_does_what_its_function_does() -> None:
    rows, truth, folds = recordings_of(steady=True)
    for step in (NeighbourSmoothing(kernel=(0.5, 0.3)), TopMean()):
        judged = evaluate_step(step, rows, truth, folds)
        assert judged.after > judged.before == lwlrap(truth, rows.scores)
        assert judged.gain_low > 0 and judged.gain_high > judged.gain_low
        np.testing.assert_array_equal(judged.admit().apply(rows), step.apply(rows))


def test_every_step_does_what_its_function_does_by_its_own_settings() -> None:
    rows, _, _ = recordings_of(steady=True, n=5)
    scores, names, times = rows.scores, rows.recordings or [], rows.times_s or []
    trained, wanted = (0.3,) * CLASSES, (0.6,) * CLASSES
    estimated = scale_odds(scores, trained, estimate_prevalences(scores, trained, 9.0))
    cases: list[tuple[Step, np.ndarray]] = [
        (PriorOdds(trained, wanted), scale_odds(scores, trained, wanted)),
        (EstimatedPriors(trained, 9.0), estimated),
        (NeighbourSmoothing((0.5, 0.3)), smooth_neighbours(scores, names, times, (0.5, 0.3))),
        (TopMean(3), weigh_by_recording(scores, names, 3)),
    ]
    for step, wanted_scores in cases:
        np.testing.assert_array_equal(step.apply(rows), wanted_scores)


def test_the_bounds_of_a_gain_draw_recordings_whole() -> None:
    rows, truth, folds = recordings_of(steady=True)
    judged = evaluate_step(TopMean(), rows, truth, folds)
    gain = bootstrap_difference(lwlrap, truth, TopMean().apply(rows), rows.scores, rows.recordings)
    assert (judged.gain_low, judged.gain_high) == (gain.low, gain.high)


def test_a_step_that_does_not_help_is_refused_with_both_figures_unless_told_to() -> None:
    rows, truth, folds = recordings_of(steady=False)
    judged = evaluate_step(NeighbourSmoothing(kernel=(1.0,)), rows, truth, folds)
    assert judged.after < judged.before
    with pytest.raises(KitError, match=f"lwlrap {judged.before:.4f} without it, {judged.after:.4f} with it"):
        judged.admit()
    smooth = NeighbourSmoothing(kernel=(1.0,)).apply(rows)
    np.testing.assert_array_equal(judged.admit(even_without_gain=True).apply(rows), smooth)


def test_a_step_that_changes_nothing_is_no_gain() -> None:
    rows, truth, folds = recordings_of(steady=True)
    trained = tuple([0.3] * CLASSES)
    for step in (NeighbourSmoothing(kernel=(0.0,)), PriorOdds(trained=trained, wanted=trained)):
        judged = evaluate_step(step, rows, truth, folds)
        assert judged.after == judged.before
        with pytest.raises(KitError, match="not seen to help"):
            judged.admit()


def test_weights_help_where_models_differ_and_not_where_they_are_one() -> None:
    rows, truth, folds = several([3.0, 0.1, 0.1])
    for per_class in (False, True):
        judged = evaluate_step(FittedWeights(per_class=per_class), rows, truth, folds)
        assert judged.after > judged.before == lwlrap(truth, rows.scores.mean(axis=0))
    same = RowSet(rows.scores[[0, 0]])
    with pytest.raises(KitError, match="FittedWeights was not seen to help"):
        evaluate_step(FittedWeights(), same, truth, folds).admit()


def test_the_step_that_comes_back_learnt_on_all_rows() -> None:
    rows, truth, folds = several([3.0, 1.0, 0.1])
    common = evaluate_step(FittedWeights(), rows, truth, folds).admit(True)
    np.testing.assert_allclose(np.array(common.weights)[:, 0], fit_weights(rows.scores, truth))
    each = evaluate_step(FittedWeights(per_class=True, strength=7.0), rows, truth, folds).admit(True)
    np.testing.assert_allclose(each.weights, fit_class_weights(rows.scores, truth, 7.0))
    np.testing.assert_allclose(
        each.apply(rows),
        sum(np.array(w) * s for w, s in zip(each.weights, rows.scores, strict=True)),
        atol=1e-12,
    )


def test_windows_are_chosen_per_class_where_classes_differ_and_must_beat_the_best_common_length() -> None:
    skill = np.where(np.arange(CLASSES) < 2, 3.0, 0.3)
    rows, truth, folds = several([skill, 3.3 - skill])
    judged = evaluate_step(WindowChoice(), rows, truth, folds)
    assert judged.admit().lengths == (0, 0, 1, 1, 1)
    assert judged.before == max(lwlrap(truth, one) for one in rows.scores) < judged.after
    chosen = judged.admit().apply(rows)
    np.testing.assert_array_equal(chosen[:, :2], rows.scores[0, :, :2])
    np.testing.assert_array_equal(chosen[:, 2:], rows.scores[1, :, 2:])


@pytest.mark.parametrize("step", [FittedWeights(per_class=True, strength=1e-6), WindowChoice()])
def test_what_was_learnt_from_noise_is_no_gain(step: Step) -> None:
    rows, truth, folds = several([0.0] * 12, n=60)
    seen = lwlrap(truth, step.fit(rows, truth).apply(rows))
    judged = evaluate_step(step, rows, truth, folds)
    assert seen > judged.after + 0.03 and judged.gain_low < 0
    with pytest.raises(KitError, match="not seen to help"):
        judged.admit()


@pytest.mark.parametrize(
    "step", [FittedWeights(), FittedWeights(per_class=True, strength=0.1), WindowChoice()]
)
def test_no_row_is_scored_by_what_was_learnt_from_its_own_fold(step: Step) -> None:
    rows, truth, folds = several([1.0, 0.8, 0.5], n=60)
    after = cross_apply(step, rows, truth, folds)
    for fold in range(5):
        other = truth.copy()
        other[folds == fold] = 1 - other[folds == fold]
        changed = cross_apply(step, rows, other, folds)
        np.testing.assert_array_equal(changed[folds == fold], after[folds == fold])
        assert not np.array_equal(changed, after)


@dataclass(frozen=True)
class Watching(Step):
    """Learns which rows it was shown: it gives them back at once."""

    learns: ClassVar[bool] = True
    shown: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        pass

    def fit(self, rows: RowSet, truth: np.ndarray) -> "Watching":
        self.shown.append((list(rows.recordings or []), list(rows.times_s or []), truth.copy()))
        return self

    def apply(self, rows: RowSet) -> np.ndarray:
        self.shown.append(list(rows.recordings or []))
        return rows.scores


def test_recordings_and_times_go_with_their_rows() -> None:
    rows, truth, folds = recordings_of(steady=True, n=8)
    step = Watching()
    np.testing.assert_array_equal(cross_apply(step, rows, truth, folds), rows.scores)
    for fold, (learnt, applied) in enumerate(zip(step.shown[::2], step.shown[1::2], strict=True)):
        assert not set(learnt[0]) & set(applied) and set(applied) == {f"r{fold}", f"r{fold + 4}"}
        assert learnt[1] == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0] * 6
        np.testing.assert_array_equal(learnt[2], truth[folds != fold])


def test_recordings_may_be_columns_of_a_table_whose_index_is_not_the_order() -> None:
    rows, _, _ = recordings_of(steady=True, n=8)
    table = pandas.DataFrame({"name": rows.recordings, "time": rows.times_s}).set_index(np.arange(48)[::-1])
    some = np.arange(48) < 20
    picked = RowSet(rows.scores, table["name"], table["time"]).pick(some)
    assert (picked.recordings, picked.times_s) == (rows.pick(some).recordings, rows.pick(some).times_s)


def test_estimated_priors_help_where_the_set_has_others_than_training() -> None:
    rng = np.random.default_rng(0)
    trained, here = np.full(3, 0.5), np.array([0.1, 0.5, 0.9])
    truth = (rng.random((400, 3)) < here).astype(float)
    rows = RowSet(1 / (1 + np.exp(2 - 2 * (rng.normal(size=truth.shape) + 2 * truth))))
    folds = np.arange(400) % 2
    judged = evaluate_step(EstimatedPriors(trained=tuple(trained)), rows, truth, folds, negative_log_loss)
    known = evaluate_step(PriorOdds(tuple(trained), tuple(here)), rows, truth, folds, negative_log_loss)
    assert judged.before + 0.05 < judged.after == pytest.approx(known.after, abs=0.01)
    assert judged.metric == "negative_log_loss" and judged.gain_low > 0


def test_unknown_labels_are_neither_learnt_nor_scored() -> None:
    for step in (FittedWeights(), FittedWeights(per_class=True), WindowChoice()):
        rows, truth, folds = several([2.0, 0.5, 0.1])
        truth[np.random.default_rng(1).random(truth.shape) < 0.4] = np.nan
        other = np.where(np.isnan(truth), 0.77, rows.scores)
        one, two = evaluate_step(step, rows, truth, folds), evaluate_step(step, RowSet(other), truth, folds)
        assert dataclasses.astuple(one) == dataclasses.astuple(two)


def test_only_what_looks_at_the_whole_set_is_marked_so() -> None:
    assert [name for name, step in STEPS.items() if step.whole_set] == ["EstimatedPriors"]
    assert [name for name, step in STEPS.items() if step.learns] == ["FittedWeights", "WindowChoice"]
    rows, _, _ = recordings_of(steady=True, n=6)
    some = np.arange(36) < 12
    trained = tuple([0.2] * CLASSES)
    for step in (
        PriorOdds(trained, (0.4,) * CLASSES),
        EstimatedPriors(trained),
        NeighbourSmoothing(),
        TopMean(),
    ):
        same = np.array_equal(step.apply(rows)[some], step.apply(rows.pick(some)))
        assert same != step.whole_set


def test_a_judged_step_survives_json() -> None:
    rows, truth, folds = recordings_of(steady=True)
    stacked = RowSet(np.stack([rows.scores, rows.scores**2]), rows.recordings, rows.times_s)
    trained = tuple([0.3] * CLASSES)
    cases: list[tuple[Step, RowSet]] = [
        (PriorOdds(trained, (0.2,) * CLASSES), rows), (EstimatedPriors(trained, 3.0), rows), (TopMean(3), rows),
        (NeighbourSmoothing((0.5, 0.1)), rows), (FittedWeights(True), stacked), (WindowChoice(), stacked),
    ]  # fmt: skip
    assert {type(step).__name__ for step, _ in cases} == set(STEPS)
    for step, given in cases:
        judged = evaluate_step(step, given, truth, folds)
        again = Judged.from_dict(json.loads(json.dumps(judged.to_dict())))
        assert again == judged and again.admit(True) == judged.admit(True)
        np.testing.assert_array_equal(again.admit(True).apply(given), judged.admit(True).apply(given))


def test_settings_are_checked_at_birth() -> None:
    figures = {"metric": "lwlrap", "before": 0.5, "after": 0.6, "gain_low": 0.0, "gain_high": 0.1}
    with pytest.raises(KitError, match="top_k must be at least 1"):
        Judged(kind="TopMean", settings={"top_k": 0}, **figures)
    with pytest.raises(KitError, match="unknown step 'TopMeen': did you mean 'TopMean'"):
        Judged(kind="TopMeen", settings={}, **figures)
    with pytest.raises(KitError, match="kernel must be at least 0"):
        NeighbourSmoothing(kernel=(0.5, -0.1))
    with pytest.raises(KitError, match="prevalence"):
        PriorOdds(trained=(0.1, 1.5))


def test_what_cannot_be_judged_is_told() -> None:
    rows, truth, folds = recordings_of(steady=True)
    models = RowSet(np.stack([rows.scores] * 2), rows.recordings, rows.times_s)
    cases: list[tuple[Any, str]] = [
        (lambda: evaluate_step(TopMean(), rows, truth[:-1], folds), "the same rows"),
        (lambda: evaluate_step(TopMean(), rows, truth, folds[:-1]), "the same rows"),
        (lambda: evaluate_step(TopMean(), rows, truth, np.arange(len(truth)) % 2), "lies in fold 0 and in fold 1"),
        (lambda: evaluate_step(FittedWeights(), models, truth, folds * 0), "all rows are in one fold"),
        (lambda: evaluate_step(FittedWeights(), rows, truth, folds), r"\(models, clips, classes\)"),
        (lambda: evaluate_step(TopMean(), models, truth, folds), r"\(rows, classes\)"),
        (lambda: evaluate_step(TopMean(), RowSet(rows.scores), truth, folds), "each row's recording"),
        (lambda: evaluate_step(NeighbourSmoothing(), RowSet(rows.scores), truth, folds), "recording and time"),
        (lambda: evaluate_step(TopMean(), rows, truth * 0, folds), "has a true label"),
        (lambda: WindowChoice().apply(models), "fit it"),
        (lambda: WindowChoice(lengths=(2,) * CLASSES).apply(models), "fit it"),
        (lambda: FittedWeights().apply(models), "per model and class"),
        (lambda: FittedWeights(weights=((1.0,),) * 3).apply(models), "per model and class"),
    ]  # fmt: skip
    for attempt, words in cases:
        with pytest.raises(KitError, match=words):
            attempt()


def test_a_judged_step_tells_what_it_did_and_what_it_looks_at() -> None:
    judged = Judged("EstimatedPriors", {"trained": [0.1, 0.2]}, "lwlrap", 0.5, 0.6125, -0.01, 0.2)
    assert str(judged) == (
        "EstimatedPriors: lwlrap 0.5000 to 0.6125, gain +0.1125, 0.95 within -0.0100 to +0.2000; looks at the whole set"
    )


@pytest.mark.parametrize(("step", "rows"), [(TopMean, RowSet(np.ones((2, 2)))), (TopMean(), np.ones((2, 2)))])
def test_what_is_no_step_or_no_row_set_is_told_how_to_ask(step: Any, rows: Any) -> None:
    with pytest.raises(KitError, match=r"evaluate_step\(TopMean\(\), RowSet"):
        evaluate_step(step, rows, np.ones((2, 2)), [0, 1])
