"""A step after the models and out-of-fold scores in, whether it helps out."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from kit.core.config import Config, setting
from kit.core.errors import KitError, choose
from kit.infer.blend import blend_scores, choose_windows, fit_class_weights, fit_weights
from kit.infer.postprocess import estimate_prevalences, scale_odds, smooth_neighbours, weigh_by_recording
from kit.labels.bootstrap import bootstrap_difference
from kit.labels.folds import check_no_leak
from kit.labels.metrics import lwlrap


class RowSet(NamedTuple):
    """Scores of rows, and where rows are windows each one's recording and time.

    Shape:  scores (n, K), or (m, n, K) of m models or window lengths; recordings (n,), times_s (n,)
    """

    scores: np.ndarray
    recordings: Sequence[Any] | None = None
    times_s: Sequence[float] | None = None

    def pick(self, rows: np.ndarray) -> "RowSet":
        """Some rows of it. Shape: rows (n,) bool"""
        columns = (None if given is None else list(itertools.compress(given, rows)) for given in self[1:])
        return RowSet(self.scores[..., rows, :], *columns)


@dataclass(frozen=True)
class Step(Config):
    """What is done to scores; it `learns` from labels, or sees the `whole_set`."""

    learns: ClassVar[bool] = False
    whole_set: ClassVar[bool] = False

    def fit(self, rows: RowSet, truth: np.ndarray) -> Self:
        """The step with what it learns from scores and labels."""
        return self

    def apply(self, rows: RowSet) -> np.ndarray:
        """The rows' scores after it. Shape: -> (n, K)"""
        raise NotImplementedError

    def plain(self, rows: RowSet) -> list[np.ndarray]:
        """What it must beat: the scores without it. Shape: -> (n, K) each"""
        return [rows.scores]


@dataclass(frozen=True)
class PriorOdds(Step):
    """Odds scaled to other prevalences, given: scale_odds."""

    trained: tuple[float, ...] = setting((), "prevalences in training", low=0, high=1)
    wanted: tuple[float, ...] = setting((), "prevalences where it is applied", low=0, high=1)

    def apply(self, rows: RowSet) -> np.ndarray:
        return scale_odds(rows.scores, self.trained, self.wanted)


@dataclass(frozen=True)
class EstimatedPriors(Step):
    """Odds scaled to the prevalences that the scores tell: estimate_prevalences."""

    whole_set: ClassVar[bool] = True
    trained: tuple[float, ...] = setting((), "prevalences in training", low=0, high=1)
    strength: float = setting(1.0, "rows that the training prevalences count as", low=1e-6)

    def apply(self, rows: RowSet) -> np.ndarray:
        wanted = estimate_prevalences(rows.scores, self.trained, self.strength)
        return scale_odds(rows.scores, self.trained, wanted)


@dataclass(frozen=True)
class NeighbourSmoothing(Step):
    """Rows averaged with their neighbours in time: smooth_neighbours."""

    kernel: tuple[float, ...] = setting((0.5,), "weights of the 1st, 2nd ... neighbour", low=0, high=1)

    def apply(self, rows: RowSet) -> np.ndarray:
        if rows.recordings is None or rows.times_s is None:
            raise KitError("give each row's recording and time: RowSet(scores, recordings, times).")
        return smooth_neighbours(rows.scores, rows.recordings, rows.times_s, self.kernel)


@dataclass(frozen=True)
class TopMean(Step):
    """Rows multiplied by their recording's best: weigh_by_recording."""

    top_k: int = setting(2, "rows of a recording whose mean counts", low=1)

    def apply(self, rows: RowSet) -> np.ndarray:
        if rows.recordings is None:
            raise KitError("give each row's recording: RowSet(scores, recordings).")
        return weigh_by_recording(rows.scores, rows.recordings, self.top_k)


@dataclass(frozen=True)
class FittedWeights(Step):
    """Models' mean by fitted weights: fit_weights, fit_class_weights."""

    learns: ClassVar[bool] = True
    per_class: bool = setting(False, "weights for each class")
    strength: float = setting(20.0, "labels that common weights count as (per_class)", low=1e-6)
    weights: tuple[tuple[float, ...], ...] = setting((), "per model, one or one per class; fitted")

    def fit(self, rows: RowSet, truth: np.ndarray) -> Self:
        if self.per_class:
            fitted = fit_class_weights(rows.scores, truth, self.strength)
        else:
            fitted = fit_weights(rows.scores, truth)[:, None]
        return dataclasses.replace(self, weights=fitted.tolist())

    def apply(self, rows: RowSet) -> np.ndarray:
        return blend_scores(list(rows.scores), weights=self.weights)

    def plain(self, rows: RowSet) -> list[np.ndarray]:
        return [rows.scores.mean(axis=0)]


@dataclass(frozen=True)
class WindowChoice(Step):
    """Each class heard at its best window length: choose_windows."""

    learns: ClassVar[bool] = True
    measure: str = setting("log_loss", "what is best", choices=("log_loss", "average_precision"))
    lengths: tuple[int, ...] = setting((), "each class's length; fitted", low=0)

    def fit(self, rows: RowSet, truth: np.ndarray) -> Self:
        return dataclasses.replace(self, lengths=choose_windows(rows.scores, truth, self.measure).tolist())

    def apply(self, rows: RowSet) -> np.ndarray:
        if len(self.lengths) != rows.scores.shape[-1] or max(self.lengths) >= len(rows.scores):
            raise KitError(f"lengths {self.lengths} for scores {rows.scores.shape}: fit it to those.")
        return np.asarray(rows.scores[self.lengths, :, range(len(self.lengths))].T)

    def plain(self, rows: RowSet) -> list[np.ndarray]:
        return list(rows.scores)


STEPS: dict[str, type[Step]] = {
    step.__name__: step
    for step in (PriorOdds, EstimatedPriors, NeighbourSmoothing, TopMean, FittedWeights, WindowChoice)
}


@dataclass(frozen=True)
class Judged(Config):
    """A step, the metric before and after it, and the gain's 95 % bounds."""

    kind: str
    settings: dict[str, Any]
    metric: str
    before: float
    after: float
    gain_low: float
    gain_high: float

    def check(self) -> None:
        choose("step", self.kind, STEPS).from_dict(self.settings)

    def __str__(self) -> str:
        whole = "; looks at the whole set" * STEPS[self.kind].whole_set
        return (
            f"{self.kind}: {self.metric} {self.before:.4f} to {self.after:.4f}, gain {self.after - self.before:+.4f}, "
            f"0.95 within {self.gain_low:+.4f} to {self.gain_high:+.4f}{whole}"
        )

    __repr__ = __str__

    def admit(self, even_without_gain: bool = False) -> Step:
        """The fitted step, to apply; a gain counts, whatever its bounds.

        Errors: KitError where it was not seen to help, unless told to
        """
        if not (even_without_gain or self.after > self.before):
            seen = f"{self.metric} {self.before:.4f} without it, {self.after:.4f} with it"
            raise KitError(f"{self.kind} was not seen to help: {seen}: leave it out, or say admit(True).")
        return STEPS[self.kind].from_dict(self.settings)


def evaluate_step(
    step: Step,
    rows: RowSet,
    truth: np.ndarray,
    folds: Sequence[int] | np.ndarray,
    metric: Callable[[Any, Any], float] = lwlrap,
) -> Judged:
    """Measure a step on out-of-fold scores; what it learns for one fold is learnt on the others.

    The step that comes back learnt on all rows. A recording's rows share a fold, and are drawn together for the
    gain's bounds. `before` is the best of what there would be without it.

    Shape:  truth (n, K) of 1, 0 or NaN, folds (n,); metric(truth, scores): the greater, the better
    """
    kind = type(step).__name__
    if kind not in STEPS or not hasattr(rows, "scores"):
        came = f"got {kind} and {type(rows).__name__}"
        raise KitError(f"{came}: say evaluate_step(TopMean(), RowSet(scores, recordings), truth, folds).")
    truth, folds = np.asarray(truth), np.asarray(folds)
    if rows.scores.shape[-2:] != truth.shape or folds.shape != truth.shape[:1]:
        shapes = f"{rows.scores.shape}, {truth.shape}, {folds.shape}"
        raise KitError(f"scores, truth and folds {shapes} are not of the same rows.")
    if rows.recordings is not None:
        check_no_leak(folds, rows.recordings)
    after = cross_apply(step, rows, truth, folds) if step.learns else step.apply(rows)
    plain = max(step.plain(rows), key=lambda scores: metric(truth, scores))
    gain = bootstrap_difference(metric, truth, after, plain, rows.recordings)
    return Judged(
        kind, step.fit(rows, truth).to_dict(), getattr(metric, "__name__", "the metric"),
        metric(truth, plain), metric(truth, after), gain.low, gain.high,
    )  # fmt: skip


def cross_apply(step: Step, rows: RowSet, truth: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Every fold's scores after the step that the others fit. Shape: -> (n, K)"""
    after = np.empty(truth.shape)
    for fold in np.unique(folds):
        held = folds == fold
        if held.all():
            raise KitError("all rows are in one fold: give two, to measure on rows not seen.")
        after[held] = step.fit(rows.pick(~held), truth[~held]).apply(rows.pick(held))
    return after
