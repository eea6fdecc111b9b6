"""What models say of clips in, scores of a template's rows out."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kit.core.errors import KitError, choose
from kit.infer.blend import BLENDS, blend_scores
from kit.infer.ensemble import UNPOOLED, EnsembleMember, clip_probabilities
from kit.infer.predictor import WindowLogits
from kit.infer.template import RowPlan, Template
from kit.models.tagger import TaggerCard


def class_columns(card: TaggerCard, classes: Sequence[str]) -> list[int]:
    """Where a template's classes stand among a model's. Errors: KitError where it lacks one"""
    place = {c: i for i, c in enumerate(card.classes)}
    missing = [c for c in classes if c not in place]
    if missing:
        near = difflib.get_close_matches(missing[0], place, n=1, cutoff=0.0)[0]
        lacks = f"a checkpoint lacks {len(missing)} of the template's classes, e.g. {missing[0]!r}"
        raise KitError(f"{lacks}: did you mean {near!r}? Use the template of its training data.")
    return [place[c] for c in classes]


def common_classes(cards: Sequence[TaggerCard]) -> tuple[str, ...]:
    """The models' classes. Errors: KitError where they disagree"""
    if any(set(card.classes) != set(cards[0].classes) for card in cards):
        raise KitError("the checkpoints' classes differ: give a template.")
    return cards[0].classes


def blend_priors(cards: Sequence[TaggerCard], weights: Sequence[float], classes: Sequence[str]) -> np.ndarray:
    """The score of a clip not heard: the models' prevalences, averaged. Shape: -> (K,)"""
    known = [np.array(card.prevalences)[class_columns(card, classes)] for card in cards]
    return np.asarray(np.average(known, axis=0, weights=weights))


def spans_for_row(said: WindowLogits, frames_per_s: float, begin_s: float, end_s: float) -> list[int]:
    """The windows inside a row's time, else those with their centre in it, else the nearest."""
    slack = 1.5 / frames_per_s
    times = np.array(said.spans) / frames_per_s
    centres = times.mean(axis=1)
    inside = (begin_s - slack < times[:, 0]) & (times[:, 1] < end_s + slack)
    if not inside.any():
        inside = (begin_s <= centres) & (centres < end_s)
    nearest = np.abs(centres - (begin_s + end_s) / 2).argmin()
    return np.flatnonzero(inside).tolist() or [int(nearest)]


@dataclass
class RowScores:
    """Scores of all rows by every model, filled as clips are heard. Shape: (R, K) and (R,) per model"""

    template: Template
    plan: RowPlan
    members: Sequence[EnsembleMember]
    kind: str = "mean"

    def __post_init__(self) -> None:
        check_blend(self.members, self.kind)
        trimmed = [m.name for m in self.members if m.card.frontend.trim_db is not None]
        if trimmed and any(end is not None for end in self.plan.ends_s):
            said = "its windows do not tell the time that rows ask for"
            raise KitError(f"{trimmed[0]} trims a clip's ends, so {said}: leave it out.")
        shape = (len(self.template.ids), len(self.template.classes))
        cards, self.weights = [m.card for m in self.members], [m.weight for m in self.members]
        self.columns = [class_columns(card, self.template.classes) for card in cards]
        self.priors = blend_priors(cards, self.weights, self.template.classes)
        self.scores = [np.zeros(shape, np.float32) for _ in cards]
        self.done = [np.zeros(shape[0], bool) for _ in cards]
        self.rows_of: dict[int, list[int]] = {}
        for row, source in enumerate(self.plan.files):
            if source is not None:
                self.rows_of.setdefault(source, []).append(row)

    def add(self, member: EnsembleMember, source: int, said: WindowLogits) -> None:
        """Fill the rows of one clip with what one model said."""
        m = self.members.index(member)
        for row in self.rows_of.get(source, []):
            logits, end = said.logits, self.plan.ends_s[row]
            if end is not None:
                begin = end - (self.plan.period_s or end)
                logits = logits[spans_for_row(said, member.card.frontend.frames_per_s, begin, end)]
            scores = clip_probabilities(member.tagger, member.predictor.inference, logits)
            self.scores[m][row], self.done[m][row] = scores[self.columns[m]], True

    def counts(self) -> dict[str, int]:
        """How many rows there are; were heard by all models, some, none."""
        by_all, by_any = np.all(self.done, axis=0), np.any(self.done, axis=0)
        return {
            "rows": len(by_all),
            "rows_all_models": int(by_all.sum()),
            "rows_some_models": int((by_any & ~by_all).sum()),
            "rows_with_prior": int((~by_any).sum()),
        }

    def blend(self) -> np.ndarray:
        """All models' scores as one. Shape: -> (R, K)"""
        return blend_scores(self.scores, self.done, self.weights, self.priors, self.kind)


def check_weights(weights: Sequence[float] | None, models: int) -> list[float]:
    """One positive weight per model, 1 unless given. Errors: KitError for others"""
    checked = [1.0] * models if weights is None else [float(w) for w in weights]
    if len(checked) != models or not all(0 < w < float("inf") for w in checked):
        raise KitError(f"weights: one positive number per model, {models} of them, got {checked}.")
    return checked


def check_blend(members: Sequence[EnsembleMember], kind: str) -> None:
    """Refuse to average scores that share no scale.

    Errors: KitError for an unknown blend, and where uncalibrated rank scores would enter a mean over models or windows
    """
    how = choose("blend", kind, BLENDS)
    for member in (m for m in members if not m.card.calibrated):
        if not how.any_scale:
            raise KitError(
                f"{member.name} gives rank scores without a calibration, which {kind} cannot blend: run `oof`, which "
                "fits one, or use --blend rank."
            )
        if member.predictor.inference.mode != "full":
            raise KitError(f"{member.name}: {UNPOOLED}")
