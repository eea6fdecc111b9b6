'''Stacks: second-level networks over models' predictions; the models and stacks that checkpoints hold.'''

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.audio.windows import batches_by_length
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.infer.blend import blend_scores, check_weights
from kit.infer.planner import EnsembleMember
from kit.infer.postprocess import PostprocessConfig
from kit.infer.predictor import WindowLogits
from kit.infer.rows import RowScores, class_columns
from kit.infer.template import RowPlan, Template
from kit.models.checkpoint import (
    Checkpoint,
    content_digest,
    damaged_file,
    find_models,
    open_checkpoint,
    parse_card,
    read_content,
)
from kit.models.network import meta_device
from kit.models.tagger import NetworkBuilder, Tagger, TaggerCard, fill_network


@dataclass(frozen=True)
class StackerConfig(Config):
    '''Settings of a second-level network; the gated MLP's are as published.'''

    widths: tuple[int, ...] = setting(
        (32, 64), 'channels of each block, which halves the image (image-stacker)', low=1, high=2**16, longest=64
    )
    mlp_widths: tuple[int, ...] = setting((1024, 512), 'hidden units (gated-mlp)', low=1, high=2**16, longest=64)
    dropout: float = setting(0.2, 'dropout: hidden layers (gated-mlp), last layer (image-stacker)', low=0, high=0.95)
    C: float = setting(1.0, 'inverse strength of the L2 penalty, as in scikit-learn (logistic)', low=1e-6, high=1e12)


class GatedMlp(nn.Module):
    '''An MLP over all models' predictions, each weighted by a squeeze-and-excite gate.

    Shape:  probabilities or any finite scores (B, m, K) -> logits (B, K)
    Source: first place, Freesound Audio Tagging 2019; gate: Hu et al. 2018, arXiv:1709.01507
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        width = models * classes
        narrow = max(1, width // 16)
        self.gate = nn.Sequential(nn.Linear(width, narrow), nn.PReLU(), nn.Linear(narrow, width), nn.Sigmoid())
        layers: list[nn.Module] = []
        for hidden in settings.mlp_widths:
            layers += [nn.Linear(width, hidden), nn.PReLU(), nn.Dropout(settings.dropout)]
            width = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, predictions: Tensor) -> Tensor:
        x = predictions.flatten(1)
        return self.mlp(x * self.gate(x))


class ClassMixer(nn.Module):
    '''A weighted mean of the models' probabilities per class, its logit, then a K x K layer; at first the plain mean.

    Shape:  probabilities (B, m, K) -> logits (B, K), float32 or wider outside autocast
    Source: second place, Freesound Audio Tagging 2019
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        self.model_weights = nn.Parameter(torch.zeros(models, classes))
        self.mix = nn.Linear(classes, classes)
        nn.init.eye_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, predictions: Tensor) -> Tensor:
        # The float32 weights widen half precision, where 1 - eps would be 1 and its logit infinite.
        mean = (predictions * self.model_weights.softmax(dim=0)).sum(dim=1)
        return self.mix(torch.logit(mean, eps=1e-7))


class ImageStacker(nn.Module):
    '''A small CNN over prediction images, pooled over time by mean and maximum; the rows of classes stay apart.

    Shape:  images (B, m, K, W), any W >= 1 -> logits (B, K)
    Source: Freesound Audio Tagging 2019
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = models
        rows = classes
        for channels in settings.widths:
            conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.PReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            width = channels
            rows = -(-rows // 2)
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(2 * width * rows, classes))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(images)
        return self.head(torch.cat([maps.mean(dim=3), maps.amax(dim=3)], dim=1).flatten(1))


class LogisticStacker(nn.Module):
    '''One logistic regression per class on the models' logits of that class; unfitted, their mean.

    Its weights are plain tensors: scikit-learn fits them, submitting needs only torch.
    Shape:  probabilities (B, m, K) -> logits (B, K)
    Source: Wolpert 1992, Stacked generalization, with logistic regression as the second level
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((models, classes), 1 / models))
        self.bias = nn.Parameter(torch.zeros(classes))

    def run_logits(self, predictions: Tensor) -> Tensor:
        '''Compute the logits of the models' probabilities, finite for 0 and 1.'''
        return torch.logit(predictions.to(self.weight.dtype), eps=1e-6)

    def forward(self, predictions: Tensor) -> Tensor:
        return (self.run_logits(predictions) * self.weight).sum(dim=1) + self.bias


STACKERS: dict[str, Callable[[StackerConfig, int, int], nn.Module]] = {
    'gated-mlp': GatedMlp,
    'class-mixer': ClassMixer,
    'image-stacker': ImageStacker,
    'logistic': LogisticStacker,
}


MAX_IMAGE_S = 20.0  # in training and in a submission alike
# Several models' predictions of one clip. For each model: its windows' centres (W,), their probabilities (W, K).
WindowProbs = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class StackCard(Config):
    '''The description of a stack: all but its tensors and its taggers.'''

    kind: str = setting('class-mixer', 'the second-level network', choices=tuple(STACKERS))
    network: StackerConfig = setting(StackerConfig(), 'its settings')
    runs: tuple[str, ...] = setting((), 'names of the runs', longest=1000)
    run_of: tuple[int, ...] = setting((), "each tagger's run", low=0, high=1000, longest=4096)
    classes: tuple[str, ...] = ()
    columns: int = setting(0, 'least windows of an image; 0 for scores of rows', low=0, high=100_000)
    metric: str = setting('lwlrap', 'the metric of oof_score')
    oof_score: float | None = setting(None, 'its score, cross-fitted', low=-1e9, high=1e9)

    def new_network(self) -> nn.Module:
        '''Create a second-level network with fresh weights.'''
        return STACKERS[self.kind](self.network, len(self.runs), len(self.classes))


@dataclass(frozen=True)
class Stack:
    '''A second level: its card, each fold's network, whose probabilities are averaged, and its weight in a blend.'''

    card: StackCard
    networks: Sequence[nn.Module]
    weight: float = 1.0

    @property
    def digest(self) -> str:
        '''A text, equal for stacks with equal cards and tensors.'''
        tensors: dict[str, Tensor] = {}
        for fold, network in enumerate(self.networks):
            tensors |= {f'{fold}.{name}': tensor for name, tensor in network.state_dict().items()}
        return content_digest(self.card.canonical_json(), tensors)

    def answer(self, inputs: Sequence[Tensor]) -> np.ndarray:
        '''Compute probabilities, in batches of one width. Shape: n of (m, K), or images (m, K, W_i) -> (n, K)'''
        probs = np.empty((len(inputs), len(self.card.classes)))
        with torch.inference_mode():
            for batch in batches_by_length([x.shape[-1] for x in inputs], 1 << 20):
                x = torch.stack([inputs[i] for i in batch])
                probs[batch] = torch.stack([network(x).sigmoid() for network in self.networks]).mean(dim=0).numpy()
        return probs


@dataclass(frozen=True)
class ModelSpec:
    '''A tagger, or a checkpoint whose network is not built yet, and the numbers of its stack and its run there.'''

    name: str
    source: Tagger | Checkpoint
    weight: float = 1.0
    path: Path | None = None
    stack: int | None = None
    run: int = 0

    @property
    def card(self) -> TaggerCard:
        '''The description of the tagger.'''
        return self.source.card

    def build(self, networks: Mapping[str, NetworkBuilder] | None = None) -> Tagger:
        '''The tagger, built if necessary. Errors: as load_tagger'''
        return self.source if isinstance(self.source, Tagger) else self.source.build(networks)


def open_models(
    items: str | Path | Tagger | Sequence[str | Path | Tagger],
    weights: Sequence[float] | None = None,
    skipped: dict[str, str] | None = None,
) -> tuple[list[ModelSpec], list[Stack]]:
    '''Open the models that paths and patterns name; of stacks, their taggers too.

    With `skipped`, an unusable checkpoint is left out and its reason noted there, if others are usable.
    '''
    found = find_models(items)
    models: list[ModelSpec] = []
    stacks: list[Stack] = []
    for (name, model), weight in zip(found, check_weights(weights, len(found)), strict=True):
        if isinstance(model, Tagger):
            models.append(ModelSpec(name, model, weight))
            continue
        try:
            content = read_content(model)
            if 'members' in content:
                taggers, stack = open_stack(model, content)
                models += [replace(tagger, stack=len(stacks)) for tagger in taggers]
                stacks.append(replace(stack, weight=weight))
            else:
                models.append(ModelSpec(name, open_checkpoint(model, content), weight, model))
        except KitError as error:
            if skipped is None or len(found) == 1:
                raise
            skipped[name] = str(error)
    if skipped and not models:
        raise KitError(f'none of {len(found)} checkpoints can be used: {next(iter(skipped.values()))}')
    return models, stacks


def models_with_classes(models: list[ModelSpec], template: Template, skipped: dict[str, str]) -> list[ModelSpec]:
    '''The models that know any of the template's classes.'''
    usable = []
    for model in models:
        try:
            class_columns(model.card.classes, template.classes)
            usable.append(model)
        except KitError as error:
            if len(models) == 1:
                raise
            skipped[model.name] = str(error)
    if not usable:
        raise KitError(next(iter(skipped.values())))
    return usable


def open_stack(path: Path, content: Mapping[str, Any]) -> tuple[list[ModelSpec], Stack]:
    '''Open a stack and its taggers. The taggers of one run share a weight of 1.'''
    try:
        card = StackCard(**parse_card(content['card']))
        networks = []
        for tensors in content['networks']:
            with meta_device():  # wrong sizes take no memory there
                fill_network(card.new_network(), tensors, assign=True)
            networks.append(fill_network(card.new_network(), tensors))
        models = []
        for place, (run, member) in enumerate(zip(card.run_of, content['members'], strict=True)):
            checkpoint = open_checkpoint(path, member)
            name = f'{path} [{place} {card.runs[run]}, fold {checkpoint.card.fold}]'
            source = replace(checkpoint, path=Path(name))
            models.append(ModelSpec(name, source, 1 / card.run_of.count(run), path, run=run))
        return models, Stack(card, networks)
    except Exception as error:
        raise damaged_file(path, error) from error


def average_windows(models: WindowProbs, times: np.ndarray) -> np.ndarray:
    '''Average the probabilities of models' windows nearest to some times. Shape: times (W,) -> (W, K)'''
    at_times = [probs[np.abs(times[:, None] - centres).argmin(axis=1)] for centres, probs in models]
    return np.mean(at_times, axis=0)


def clip_image(runs: Sequence[WindowProbs], columns: int) -> Tensor:
    '''Stack every run's probabilities at the times of the first one's windows, of a clip's first 20 s; then zeros.

    Shape:  -> (m, K, max(W_0, columns)) float32
    Source: two-stage systems, Freesound 2019
    '''
    times, _ = runs[0][0]
    times = times[: max(1, int((times < MAX_IMAGE_S).sum()))]
    probs = np.stack([average_windows(models, times) for models in runs])
    image = torch.from_numpy(probs).float().mT
    return F.pad(image, (0, max(0, columns - image.shape[-1])))


class StackRows(RowScores):
    '''Rows scored by a stack; rows that a run has not predicted get the plain mean of the runs that have.'''

    def __init__(self, stack: Stack, template: Template, plan: RowPlan, members: Sequence[EnsembleMember]) -> None:
        super().__init__(replace(template, classes=stack.card.classes), plan, members)
        self.stack = stack
        self.template_columns = class_columns(stack.card.classes, template.classes)
        self.window_probs: dict[tuple[int | None, int], dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, member: EnsembleMember, clip: int, output: WindowLogits) -> None:
        super().add(member, clip, output)
        if self.stack.card.columns:
            centres = np.mean(output.spans, axis=1) / member.card.frontend.frames_per_s
            probs = member.tagger.probabilities(torch.from_numpy(output.logits)).numpy()
            columns = self.columns[self.members.index(member)]
            self.window_probs.setdefault((clip, member.run), {})[member.name] = (centres, probs[:, columns])

    def sum_by_run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        '''Sum the members' arrays of each run. Shape: (R, ...) per member -> (R, m, ...)'''
        sums = []
        for run in range(len(self.stack.card.runs)):
            of_run = [x for x, member in zip(arrays, self.members, strict=True) if member.run == run]
            sums.append(np.sum(of_run, axis=0))
        return np.stack(sums, axis=1)

    def blend(self) -> np.ndarray:
        '''Score rows by the stack where every run has predicted them, else by the plain mean. Shape: -> (R, K)'''
        blended = super().blend()
        counts = self.sum_by_run(self.done)
        rows = np.flatnonzero(counts.all(axis=1))
        means = self.sum_by_run(self.scores)[rows] / counts[rows, :, None]
        inputs = list(torch.from_numpy(means).float())
        if self.stack.card.columns:
            inputs = []
            for row in rows:
                clip = self.plan.files[row]
                runs = [list(self.window_probs[clip, run].values()) for run in range(counts.shape[1])]
                inputs.append(clip_image(runs, self.stack.card.columns))
        blended[rows] = self.stack.answer(inputs)
        return np.where(self.template_columns >= 0, blended[:, self.template_columns], 0.0)


class EnsembleRows(RowScores):
    '''Rows scored by models and by stacks, if any, blended as if each stack were one model.'''

    def __init__(
        self,
        stacks: Sequence[Stack],
        template: Template,
        plan: RowPlan,
        members: Sequence[EnsembleMember],
        kind: str,
        postprocess: PostprocessConfig | None = None,
    ) -> None:
        super().__init__(template, plan, members, kind, postprocess)
        if plan.form == 'window' and any(stack.card.columns for stack in stacks):
            raise KitError('this stack reads whole clips, the template asks for windows: use a class-mixer.')
        self.parts = [
            StackRows(stack, template, plan, [member for member in members if member.stack == number])
            for number, stack in enumerate(stacks)
        ]

    def add(self, member: EnsembleMember, clip: int, output: WindowLogits) -> None:
        super().add(member, clip, output)
        if member.stack is not None:
            self.parts[member.stack].add(member, clip, output)

    def blend(self) -> np.ndarray:
        '''Blend all stacks' and other models' scores. Shape: -> (R, K)'''
        alone = [i for i, member in enumerate(self.members) if member.stack is None]
        usable = self.usable()
        scores = [self.scores[i] for i in alone] + [part.blend() for part in self.parts]
        done = [usable[i] for i in alone] + [np.any(part.done, axis=0) for part in self.parts]
        weights = [self.weights[i] for i in alone] + [part.stack.weight for part in self.parts]
        known = [self.shares[i] for i in alone] + [part.template_columns >= 0 for part in self.parts]
        return blend_scores(scores, done, weights, self.priors, self.kind, np.stack(known))
