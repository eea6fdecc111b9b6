"""Checkpoints of stacks: models and the second level that reads them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.audio.decode import one_line
from kit.audio.windows import batches_by_length
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.infer.ensemble import EnsembleMember
from kit.infer.predictor import WindowLogits
from kit.infer.rows import RowScores, check_weights
from kit.infer.template import RowPlan, Template
from kit.models.checkpoint import NetworkBuilder, find_models, load_tagger, read_checkpoint, read_content
from kit.models.stackers import STACKERS, Stacker, prediction_image
from kit.models.tagger import Tagger, TaggerCard

# What models say of a clip: its windows' centres (W,), and the probabilities there (W, K).
WindowProbs = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class StackCard(Config):
    """All that is known of a stack besides its tensors and its taggers."""

    kind: str = setting("class-mixer", "what reads them", choices=tuple(STACKERS))
    network: dict[str, Any] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    run_of: tuple[int, ...] = setting((), "each tagger's run")
    classes: tuple[str, ...] = ()
    columns: int = setting(0, "least windows of an image; 0 for scores of rows")
    oof_score: float | None = setting(None, "its lwlrap, cross-fitted")

    def new_network(self) -> Stacker:
        """A freshly initialised second-level network."""
        parts: tuple[type[Config], Callable[..., Stacker]] = STACKERS[self.kind]
        return parts[1](parts[0].from_dict(self.network), len(self.runs), len(self.classes))


@dataclass(frozen=True)
class Stack:
    """A second level: its card and each fold's network, whose answers are averaged."""

    card: StackCard
    networks: Sequence[Stacker]

    def answer(self, inputs: Sequence[Tensor]) -> np.ndarray:
        """Probabilities, in batches of one width. Shape: n of (m, K), or images (m, K, W_i) -> (n, K)"""
        answers = np.empty((len(inputs), len(self.card.classes)))
        with torch.inference_mode():
            for batch in batches_by_length([x.shape[-1] for x in inputs], 1 << 20):
                x = torch.stack([inputs[i] for i in batch])
                answers[batch] = torch.stack([net(x).sigmoid() for net in self.networks]).mean(dim=0).numpy()
        return answers


@dataclass(frozen=True)
class ModelSpec:
    """A model before it is built: a tagger or a checkpoint's content."""

    name: str
    card: TaggerCard
    holds: Tagger | Mapping[str, Any]
    weight: float = 1.0
    path: Path | None = None
    place: int = 0
    run: int = 0

    def build(self, networks: Mapping[str, NetworkBuilder] | None = None) -> Tagger:
        """The tagger. Errors: as load_tagger"""
        return self.holds if isinstance(self.holds, Tagger) else load_tagger(self.name, networks, self.holds)


def open_models(
    items: str | Path | Tagger | Sequence[str | Path | Tagger],
    blend: str = "mean",
    weights: Sequence[float] | None = None,
) -> tuple[list[ModelSpec], Stack | None]:
    """Every model that is named, or the taggers of a stack, and the stack.

    Errors: KitError as find_models and read_checkpoint, and for a stack that is not alone or not left to its mean
    """
    found, models = find_models(items), []
    for (name, model), weight in zip(found, check_weights(weights, len(found)), strict=True):
        if isinstance(model, Tagger):
            models.append(ModelSpec(name, model.card, model, weight))
            continue
        content = read_content(model)
        if "members" not in content:
            models.append(ModelSpec(name, read_checkpoint(model, content)[0], content, weight, model))
        elif len(found) == 1 and blend == "mean" and weights is None:
            return open_stack(model, content)
        else:
            raise KitError(f"{name} is a stack, which blends by itself: submit it alone, unweighted.")
    return models, None


def open_stack(path: Path, content: Mapping[str, Any]) -> tuple[list[ModelSpec], Stack]:
    """A stack and its taggers, of which a run's share a weight of 1."""
    try:
        card, models = StackCard.from_dict(json.loads(content["card"])), []
        networks = [card.new_network().eval() for _ in content["networks"]]
        for network, tensors in zip(networks, content["networks"], strict=True):
            network.load_state_dict(tensors)
        for place, (run, held) in enumerate(zip(card.run_of, content["members"], strict=True)):
            of = read_checkpoint(path, held)[0]
            name, share = f"{path} [{place} {card.runs[run]}, fold {of.fold}]", 1 / card.run_of.count(run)
            models.append(ModelSpec(name, of, held, share, path, place, run))
        return models, Stack(card, networks)
    except (KitError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise KitError(f"{path} is damaged: {one_line(error)[:160]}: make it again.") from error


def average_windows(told: WindowProbs, wanted: np.ndarray) -> np.ndarray:
    """What models say on average at these times, by their nearest windows. Shape: (W,) -> (W, K)"""
    nearest = [(np.abs(wanted[:, None] - centres).argmin(axis=1), beliefs) for centres, beliefs in told]
    return np.asarray(np.mean([beliefs[rows] for rows, beliefs in nearest], axis=0))


def clip_image(runs: Sequence[WindowProbs], columns: int) -> Tensor:
    """What every run says at the times of the first one's windows. Shape: -> (m, K, max(W_0, columns)) float32"""
    said = np.stack([average_windows(told, runs[0][0][0]) for told in runs])
    return prediction_image(torch.from_numpy(said).float(), columns)


class StackRows(RowScores):
    """Scores of rows by a stack; those that a run has not heard have the plain mean of the runs that did."""

    def __init__(
        self, stack: Stack, template: Template, plan: RowPlan, members: Sequence[EnsembleMember]
    ) -> None:
        card = stack.card
        super().__init__(replace(template, classes=card.classes), plan, members)
        if card.columns and plan.form == "window":
            raise KitError("this stack reads whole clips, the template asks for windows: use a class-mixer.")
        self.stack, self.wanted = stack, [card.classes.index(name) for name in template.classes]
        self.told: dict[tuple[int | None, int], list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, member: EnsembleMember, source: int, said: WindowLogits) -> None:
        super().add(member, source, said)
        if self.stack.card.columns:
            centres = np.mean(said.spans, axis=1) / member.card.frontend.frames_per_s
            beliefs = member.tagger.probabilities(torch.from_numpy(said.logits)).numpy()
            own = beliefs[:, self.columns[self.members.index(member)]]
            self.told.setdefault((source, member.run), []).append((centres, own))

    def blend(self) -> np.ndarray:
        """The stack's answers where every run was heard, else the plain mean. Shape: -> (R, K)"""
        blended, runs = super().blend(), range(len(self.stack.card.runs))

        def summed(arrays: Sequence[np.ndarray]) -> np.ndarray:
            pairs = list(zip(arrays, self.members, strict=True))
            return np.stack([np.sum([x for x, of in pairs if of.run == run], axis=0) for run in runs], axis=1)

        counts = summed(self.done)
        rows = np.flatnonzero(counts.all(axis=1))
        if self.stack.card.columns:
            told = [[self.told[self.plan.files[row], run] for run in runs] for row in rows]
            inputs = [clip_image(of_row, self.stack.card.columns) for of_row in told]
        else:
            inputs = list(torch.from_numpy(summed(self.scores)[rows] / counts[rows, :, None]).float())
        blended[rows] = self.stack.answer(inputs)
        return blended[:, self.wanted]
