'''The models of an ensemble, and which of them runs next in the time left.'''

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, Stopwatch, TimeBudget
from kit.core.worker import opened
from kit.infer.backend import CompiledNetwork
from kit.infer.cache import PredictionCache
from kit.infer.predictor import Predictor, compute_spectrograms
from kit.labels.metrics import METRICS, compute_metric
from kit.labels.oof_predictions import OofPredictions, load_oof
from kit.models.tagger import Tagger, TaggerCard


@dataclass(eq=False)
class EnsembleMember:
    '''One model of an ensemble, and how far it has come.

    `failure` says why the model stopped, `failed_clips` why single clips lack a prediction. `finished` is true from its
    last clip on. `cost` is measured: seconds per second read; `read_s` of them are read. `predicted` includes clips of
    an earlier call. `coarse` is of windows side by side. A model of a stack has its number, and its run.
    '''

    name: str
    predictor: Predictor
    cache: PredictionCache = field(default_factory=PredictionCache)
    weight: float = 1.0
    stack: int | None = None
    run: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)
    predicted: set[int] = field(default_factory=set)
    failed_clips: dict[int, str] = field(default_factory=dict)
    failure: str | None = None
    finished: bool = False
    cost: float = 0.0
    read_s: float = 0.0
    coarse: PredictionCache = field(default_factory=PredictionCache)

    @property
    def tagger(self) -> Tagger:
        '''The model itself.'''
        return self.predictor.tagger

    @property
    def card(self) -> TaggerCard:
        '''The model's description.'''
        return self.tagger.card

    @property
    def folder(self) -> Path:
        '''The folder of the checkpoint.'''
        return Path(self.name).parent

    @property
    def frontend_key(self) -> str:
        '''A text, equal for members that share spectrograms.'''
        return self.card.frontend.canonical_json()

    def fail_clip(self, clip: int, reason: str) -> None:
        '''Note why a clip has no prediction by this model.'''
        self.predicted.discard(clip)
        self.failed_clips[clip] = reason


def reasons_by_name(reasons: Mapping[int, str], names: Sequence[str]) -> dict[str, str]:
    '''Replace clips by their names, in order.'''
    return {names[clip]: reason for clip, reason in sorted(reasons.items())}


def rounded_spans(watch: Stopwatch) -> dict[str, list[list[float]]]:
    '''Round a stopwatch's spans to milliseconds.'''
    return {name: [[round(start, 3), round(end, 3)] for start, end in spans] for name, spans in watch.spans.items()}


def member_report(member: EnsembleMember, names: Sequence[str]) -> dict[str, Any]:
    '''Describe a model and its work for the report.'''
    card = member.card
    return {
        'checkpoint': Path(member.name).name,
        'weight': member.weight,
        'family': card.family,
        'output': card.output,
        'calibrated': card.is_calibrated,
        'metric': card.metric,
        'oof_score': card.oof_score,
        'inference': member.predictor.inference.to_dict(),
        'fusion': member.predictor.fusion,
        'backend': member.predictor.compilation,
        'clips_predicted': len(member.predicted),
        'clips_failed': reasons_by_name(member.failed_clips, names),
        'network_s': round(member.watch.seconds.get('network', 0.0), 3),
        'spans': rounded_spans(member.watch).get('network', []),
        'failure': member.failure,
    }


def doubtful_outputs(members: Sequence[EnsembleMember]) -> list[str]:
    '''Warn of the users' networks whose outputs look like those of a sigmoid or of log_softmax.'''
    warnings = []
    for member in members:
        outputs = [output.logits for output in member.cache.entries.values()]
        if not (outputs and member.card.is_custom and member.card.returns == 'logits'):
            continue
        name = Path(member.name).name
        if all(x.min() >= 0 and x.max() <= 1 for x in outputs):
            question = "are they probabilities? wrap_network(returns='probabilities')"
            warnings.append(f'{name}: all outputs lie in [0, 1]: {question}')
        elif all(np.allclose(np.exp(x).sum(axis=1), 1, atol=1e-4) for x in outputs):
            warnings.append(f'{name}: all outputs are logarithms of probabilities: return logits, without log_softmax')
    return warnings


SAMPLE_S = 5.0
MEASURING_SHARE = 0.05  # of the time left
LEAST_LEFT_S = 2.0
OOF_BYTES_PER_S = 4e6  # that are read
GOOD_MARGIN = 0.05  # a score this far below the best is still good


def read_seconds(inference: InferenceConfig, seconds: Any) -> float:
    '''Add up the seconds that a network reads of clips, in windows that may overlap. Shape: seconds (n,)'''
    lengths = np.asarray(seconds, np.float64)
    if inference.mode == 'windows':
        # A spectrogram has one frame more than its clip, and so a last window that begins with the end.
        further = np.ceil((lengths - inference.window_s) / inference.hop_s + 1e-6).clip(0)
        lengths = inference.window_s * (1 + further)
    return float(lengths.sum())


def has_overlap(inference: InferenceConfig) -> bool:
    '''Whether the network reads windows that overlap.'''
    return inference.mode == 'windows' and inference.hop_s < inference.window_s


def measure_cost(predictor: Predictor, budget: TimeBudget | None = None, limit_s: float = math.inf) -> float:
    '''Measure the seconds that a model takes for a second that it reads, on five seconds of noise or one window.

    The second turn counts, unless the first exceeds `limit_s`. What batches took is added to the budget.
    '''
    budget = budget or TimeBudget()
    trial = TimeBudget(Deadline(now=budget.deadline.now))
    trial.paces = budget.paces
    card = predictor.tagger.card
    inference = predictor.inference
    seconds = SAMPLE_S if inference.mode == 'full' else max(SAMPLE_S, inference.window_s)
    noise = torch.randn(round(seconds * card.frontend.sample_rate), generator=torch.Generator().manual_seed(0))
    specs = compute_spectrograms(predictor.tagger.frontend, [(0.1 * noise).to(predictor.device)])
    start = trial.deadline.now()
    predictor.predict(specs, trial)  # also compiles, reserves memory and prepares the convolutions
    if trial.deadline.now() - start > limit_s:
        return (trial.deadline.now() - start) / read_seconds(inference, [seconds])
    if isinstance(predictor.network, CompiledNetwork):
        specs = specs * predictor.network.rows  # without padding
    trial.paces.pop(predictor.kind, None)
    start = trial.deadline.now()
    predictor.predict(specs, trial)
    return (trial.deadline.now() - start) / read_seconds(inference, [seconds] * len(specs))


def select_runs(
    runs: Mapping[Path, OofPredictions], first: Path, costs: Mapping[Path, float], weights: Mapping[Path, float]
) -> list[Path]:
    '''Order runs by what each adds to the mean of those before, out of fold, per second; leave out the useless.

    `costs` are seconds of one model of each run. Up to 2,000 clips are used.
    '''
    start = runs[first]
    rows = slice(None, None, max(1, -(-len(start.names) // 2000)))
    truth = start.truth[rows]
    probs = {run: oof.probabilities_like(start, run, first)[rows] for run, oof in runs.items()}
    chosen = [first]
    waiting = [run for run in runs if run != first]
    score = compute_metric(start.metric, truth, probs[first])
    while waiting:
        scores = {}
        for run in waiting:
            blend = [*chosen, run]
            blended = np.average([probs[one] for one in blend], axis=0, weights=[weights[one] for one in blend])
            scores[run] = compute_metric(start.metric, truth, blended)
        best = max(waiting, key=lambda run: (scores[run] - score) / max(costs[run], 1e-9))
        if scores[best] <= score:
            break
        score = scores[best]
        chosen.append(best)
        waiting.remove(best)
    return chosen


class Plan:
    '''Chooses the model that runs next. Without a deadline that is the next in the given order.

    Under one, the cheapest good model that has the time is first. Then come those that add most out of fold per second,
    where the runs beside the checkpoints tell, else the cheapest good ones: those little below the best score. A stack
    needs all its runs: their first models come before any second. For a metric per class, those with time for every row
    come first.

    Where the first model has no time for every row and its windows overlap, a `preview` comes before all: that model
    over windows side by side, until its own scores replace these.

    `steps` records each choice, with the seconds that the model should need, and those left.
    '''

    def __init__(self, budget: TimeBudget | None = None) -> None:
        self.budget = budget or TimeBudget()
        self.seconds: dict[int, float] = {}
        self.factor = 1.0
        self.selected: list[Path] = []
        self.rejected: set[Path] = set()
        self.started: list[EnsembleMember] = []
        self.preview: EnsembleMember | None = None
        self.steps: list[dict[str, Any]] = []

    def set_clips(self, seconds: Mapping[int, float | None], factor: float = 1.0) -> None:
        '''Set each clip's length, which stands for `factor` clips, and begin a new order.'''
        self.seconds = {clip: length or 0.0 for clip, length in seconds.items()}
        self.factor = factor
        self.started = []

    @property
    def has_deadline(self) -> bool:
        '''Whether time is short at all.'''
        return self.budget.deadline.at < math.inf

    def measure(self, members: Sequence[EnsembleMember]) -> None:
        '''Measure every model's `cost`, small models first and equal ones once, and compare their runs out of fold.

        It is infinite for a model that fails, and for the largest where time is short. With little, none is measured.
        '''
        deadline = self.budget.deadline
        is_needed = self.has_deadline and (len(members) > 1 or has_overlap(members[0].predictor.inference))
        if deadline.left_s() < LEAST_LEFT_S or not is_needed:
            return
        stop_at_s = (1 - MEASURING_SHARE) * deadline.left_s()
        cost_of_kind: dict[str, float] = {}
        for member in sorted(members, key=lambda member: member.predictor.size):
            kind = member.predictor.kind
            if kind not in cost_of_kind and deadline.left_s() >= stop_at_s:
                cost_of_kind[kind] = math.inf
                with contextlib.suppress(Exception), opened('model', [member.name]):  # it fails again, with a reason
                    cost_of_kind[kind] = measure_cost(member.predictor, self.budget, deadline.left_s() - stop_at_s)
            member.cost = cost_of_kind.get(kind, math.inf)
        self.compare_runs(members, deadline.left_s() - stop_at_s)

    def compare_runs(self, members: Sequence[EnsembleMember], limit_s: float = math.inf) -> None:
        '''Order the checkpoints' runs by their out-of-fold predictions, unless reading takes longer.'''
        runs: dict[Path, OofPredictions] = {}
        costs: dict[Path, float] = {}
        weights: dict[Path, float] = {}
        for member in self.order(members):
            if member.stack is None and (member.folder / 'oof.csv').is_file():
                weights[member.folder] = weights.get(member.folder, 0.0) + member.weight
                costs.setdefault(member.folder, self.needed_s(member))
        if len(costs) < 2 or sum((folder / 'oof.csv').stat().st_size for folder in costs) > limit_s * OOF_BYTES_PER_S:
            return
        first = next(iter(costs))
        for folder in costs:
            with contextlib.suppress(Exception):  # damaged files, or other clips
                oof = load_oof(folder)
                oof.probabilities_like(runs.get(first, oof), folder, first)
                runs[folder] = oof
        with contextlib.suppress(Exception):  # the order is a gain, not a condition
            if len(runs) > 1:
                self.selected = select_runs(runs, first, costs, weights)
                self.rejected = runs.keys() - set(self.selected)

    def needed_s(self, member: EnsembleMember) -> float:
        '''Estimate the seconds that a model needs for the clips that it has not predicted.'''
        lengths = [length for clip, length in self.seconds.items() if clip not in member.predicted]
        read_s = read_seconds(member.predictor.inference, lengths) * self.factor
        return member.cost * read_s if read_s else 0.0

    def order(self, waiting: Sequence[EnsembleMember]) -> list[EnsembleMember]:
        '''Order the models that have not run for the time left.'''
        left_s = self.budget.left_s()
        needed_s = {member: self.needed_s(member) for member in waiting}
        known = [*waiting, *self.started]
        scores = [member.card.oof_score for member in known if member.card.oof_score is not None]
        needs_all_rows = not self.started or any(METRICS[member.card.metric].is_per_class for member in known)

        def rank(member: EnsembleMember) -> tuple[float, ...]:
            score = member.card.oof_score
            is_bad = score is not None and score < max(scores) - GOOD_MARGIN
            run = self.selected.index(member.folder) if member.folder in self.selected else len(self.selected)
            return (is_bad, run, needed_s[member] or member.cost, math.inf if score is None else -score)

        runs = [self.run_of(member) for member in self.started]
        turns: dict[EnsembleMember, tuple[bool, float]] = {}
        for member in sorted(waiting, key=rank):
            run = self.run_of(member)
            is_late = needs_all_rows and needed_s[member] > left_s
            turns[member] = (is_late, math.inf if run in self.rejected else runs.count(run))
            runs.append(run)
        ordered = sorted(turns, key=turns.__getitem__)
        if not self.started and turns[ordered[0]][0]:
            ordered.sort(key=needed_s.__getitem__)  # none has the time for all rows
        return ordered

    def run_of(self, member: EnsembleMember) -> object:
        '''A value equal for models of one run, and for all that no stack or run compares.'''
        if member.stack is not None:
            return (member.stack, member.run)
        return member.folder if member.folder in {*self.selected, *self.rejected} else None

    def make_preview(self, members: Sequence[EnsembleMember]) -> EnsembleMember | None:
        '''Set `preview` where one is needed, and return the model that it stands for.'''
        if not self.has_deadline:
            return None
        first = self.order(members)[0]
        inference = first.predictor.inference
        if self.needed_s(first) <= self.budget.left_s() or not has_overlap(inference):
            return None
        predictor = copy.copy(first.predictor)  # a network that measuring has fused or compiled is shared
        predictor.inference = replace(inference, hop_s=inference.window_s)
        self.preview = EnsembleMember(first.name, predictor, first.coarse)
        return first

    def next_member(self, waiting: Sequence[EnsembleMember]) -> EnsembleMember:
        '''Choose the model that runs next.'''
        if self.preview is not None and self.preview in waiting:
            return self.preview
        if not self.has_deadline:
            return waiting[0]
        member = self.order(waiting)[0]
        self.started.append(member)
        needed_s = min(self.needed_s(member), 1e9)  # JSON has no infinity
        self.steps.append({'checkpoint': Path(member.name).name, 'needed_s': needed_s, 'left_s': self.budget.left_s()})
        return member

    def update_costs(self, member: EnsembleMember, waiting: Sequence[EnsembleMember]) -> None:
        '''Measure anew the cost of a model that has run, and of equal ones.'''
        spent_s = member.watch.seconds.get('network', 0.0)
        if spent_s > 0 and member.read_s > 0:
            for other in [member, *waiting]:
                if other.predictor.kind == member.predictor.kind:
                    other.cost = spent_s / member.read_s

    def describe(self, members: Sequence[EnsembleMember]) -> str:
        '''Say how many models fit in the time left, if any cost was measured.'''
        if not any(member.cost for member in members):
            return ''
        needed_s = np.array([self.needed_s(member) for member in self.order(members)])
        left_s = self.budget.left_s()
        n_fit = int((np.cumsum(needed_s) <= left_s).sum())
        finite_s = needed_s[np.isfinite(needed_s)].sum()
        at_least = '' if np.isfinite(needed_s).all() else 'more than '
        text = f'plan: {n_fit} of {len(members)} models fit: they need {at_least}{finite_s:.0f} s for '
        text += f'{sum(self.seconds.values()):.0f} s of audio, {max(0.0, left_s):.0f} s are left'
        if self.rejected:
            names = ', '.join(sorted(folder.name for folder in self.rejected))
            text += f'; models of {names} come last, as they add nothing out of fold'
        return text
