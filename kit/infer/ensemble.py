'''Run every model of an ensemble over every clip, in an order that suits the time left.'''

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.decode import one_line
from kit.audio.frontend import Frontend
from kit.audio.windows import InferenceConfig, pool_windows
from kit.core.clock import Stopwatch, TimeBudget
from kit.core.errors import KitError
from kit.core.runtime import get_world_size
from kit.core.worker import opened
from kit.infer.backend import CompiledNetwork
from kit.infer.cache import PredictionCache
from kit.infer.loader import Chunk, SpectrogramLoader
from kit.infer.predictor import Predictor, WindowLogits, compute_spectrograms
from kit.models.tagger import Tagger, TaggerCard

NOT_FINITE = "the network's answer is no finite number"
UNPOOLED = (
    'ranking scores without a calibration cannot be pooled over windows: run `oof` on the run, which fits one, or '
    'use mode full.'
)


@dataclass(eq=False)
class EnsembleMember:
    '''One model of an ensemble, and how far it has come.

    `failure` says why the model stopped, `failed_clips` why single clips have no prediction. `finished` is true from
    its last clip on. `cost` is measured: seconds of this machine per second of audio. A model of a stack has the
    stack's number, and its run there.
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

    @property
    def tagger(self) -> Tagger:
        '''The model itself.'''
        return self.predictor.tagger

    @property
    def card(self) -> TaggerCard:
        '''The model's description.'''
        return self.tagger.card

    @property
    def frontend_key(self) -> str:
        '''A text that is equal for members that share spectrograms.'''
        return self.card.frontend.canonical_json()

    def fail_clip(self, clip: int, reason: str) -> None:
        '''Note why a clip has no prediction by this model.'''
        self.predicted.discard(clip)
        self.failed_clips[clip] = reason


def collect_frontends(members: Sequence[EnsembleMember], device: torch.device) -> dict[str, Frontend]:
    '''Move each distinct frontend to the device, once.'''
    return {member.frontend_key: member.tagger.frontend.to(device) for member in members}


def predict_ensemble(
    members: Sequence[EnsembleMember], loader: SpectrogramLoader, budget: TimeBudget | None = None
) -> Iterator[tuple[EnsembleMember, int, WindowLogits]]:
    '''Run every model over every clip, and yield each clip's logits as (member, clip, logits).

    Models run one after the other; the time budget is checked between batches. Failures are values: of a model in
    `member.failure`, of logits that are not finite in `member.failed_clips`, of a file in `loader.failures`. Where
    processes share the clips, `member.finished` is left to the caller.
    '''
    budget = budget or TimeBudget()
    is_shared = get_world_size() > 1
    for position, member in enumerate(members):
        key = member.frontend_key
        is_last_user = all(other.frontend_key != key for other in members[position + 1 :])
        for chunk in loader.chunks:
            if budget.should_stop():
                member.cache.flush()
                return
            try:
                outputs = predict_chunk(member, loader, chunk, budget)
            except Exception as error:
                member.failure = one_line(error)[:500]
                break
            last_clip = outputs[-1][0] if outputs and chunk is loader.chunks[-1] else None
            for clip, logits in outputs:
                member.predicted.add(clip)
                member.finished = clip == last_clip and not (budget.stopped or is_shared)
                yield member, clip, logits
            if is_last_user:
                loader.drop(chunk, key)
        else:
            member.finished = not (budget.stopped or is_shared)  # also where every clip of the last chunk failed
        if is_last_user:
            loader.frontends.pop(key, None)
            for chunk in loader.chunks:
                loader.drop(chunk, key)
        member.cache.flush()


def predict_chunk(
    member: EnsembleMember, loader: SpectrogramLoader, chunk: Chunk, budget: TimeBudget
) -> list[tuple[int, WindowLogits]]:
    '''Return the logits of a chunk's clips, from the model's cache if all are there, else from the network.

    A chunk that is partly cached is predicted whole: a resumed job forms the same batches and gets the same digits.
    '''
    clips = loader.load(chunk)
    if not all(loader.digests[clip] in member.cache for clip in clips):
        clips, specs = loader.specs(chunk, member.frontend_key)
        budget.start_step()
        names = [member.name, *loader.paths(clips)]
        with member.watch.measure('network'), loader.watch.measure('network'), opened('model', names):
            outputs = member.predictor.predict(specs, budget)
        finite = []
        for clip, output in zip(clips, outputs, strict=True):
            if output is None:
                continue
            if np.isfinite(output.logits).all():
                finite.append((loader.digests[clip], output))
            else:
                member.fail_clip(clip, NOT_FINITE)
        files = {loader.identities[clip]: loader.digests[clip] for clip in clips if clip in loader.identities}
        member.cache.digests |= files
        member.cache.add(finite)
    entries = member.cache.entries
    return [(clip, entries[loader.digests[clip]]) for clip in clips if loader.digests[clip] in entries]


def clip_probabilities(tagger: Tagger, inference: InferenceConfig, logits: np.ndarray) -> np.ndarray:
    '''Turn the logits of a clip's windows into one score per class: calibrate, convert to probabilities, pool.

    Ranking scores without a calibration stay as they are; only rank blends take them.

    Shape:  logits (W, K) -> (K,)
    '''
    if tagger.card.is_calibrated:
        return pool_windows(tagger.probabilities(torch.from_numpy(logits)), inference).numpy()
    if len(logits) > 1:
        raise KitError(UNPOOLED)
    return np.asarray(logits[0])


def reasons_by_name(reasons: Mapping[int, str], names: Sequence[str]) -> dict[str, str]:
    '''Replace clips by their names, in order.'''
    return {names[clip]: reason for clip, reason in sorted(reasons.items())}


def rounded_spans(watch: Stopwatch) -> dict[str, list[list[float]]]:
    '''Round a stopwatch's spans to milliseconds.'''
    rounded = {}
    for name, spans in watch.spans.items():
        rounded[name] = [[round(start, 3), round(end, 3)] for start, end in spans]
    return rounded


def member_report(member: EnsembleMember, names: Sequence[str]) -> dict[str, Any]:
    '''Describe a model and its work for the report.'''
    card = member.card
    return {
        'checkpoint': Path(member.name).name,
        'weight': member.weight,
        'family': card.network.get('family'),
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


def members_with_probabilities(members: Sequence[EnsembleMember]) -> list[str]:
    '''Name the users' networks whose outputs all lie in [0, 1], as those of a network that ends in a sigmoid do.'''
    names = []
    for member in members:
        outputs = [output.logits for output in member.cache.entries.values()]
        is_custom = str(member.card.network.get('family')).startswith('custom:')
        is_doubtful = is_custom and member.card.returns == 'logits'
        if is_doubtful and outputs and all(x.min() >= 0 and x.max() <= 1 for x in outputs):
            names.append(Path(member.name).name)
    return names


SAMPLE_S = 5.0
MEASURING_SHARE = 0.05  # of the time left
LEAST_LEFT_S = 10.0
GOOD_MARGIN = 0.05  # a score this far below the best is still good


def measure_cost(predictor: Predictor, now: Callable[[], float] = time.perf_counter) -> float:
    '''Measure the seconds that a model takes for a second of audio, on five seconds of noise or one window.'''
    card = predictor.tagger.card
    inference = predictor.inference
    seconds = SAMPLE_S if inference.mode == 'full' else max(SAMPLE_S, inference.window_s)
    noise = torch.randn(round(seconds * card.frontend.sample_rate), generator=torch.Generator().manual_seed(0))
    specs = compute_spectrograms(predictor.tagger.frontend, [(0.1 * noise).to(predictor.device)])
    predictor.predict(specs)  # the first turn also compiles, reserves memory and prepares the convolutions
    if isinstance(predictor.network, CompiledNetwork):
        specs = specs * predictor.network.rows  # so that no padding is measured
    start = now()
    predictor.predict(specs)
    return (now() - start) / (seconds * len(specs))


def measure_costs(members: Sequence[EnsembleMember], budget: TimeBudget) -> None:
    '''Measure every model's `cost`, small models first and equal ones once.

    The cost is infinite for a model that fails, and for the largest ones where measuring takes too long. With little
    time left nothing is measured.
    '''
    if budget.deadline.left_s() < LEAST_LEFT_S:
        return
    sizes = [sum(x.numel() for x in member.tagger.network.parameters()) for member in members]
    cost_of_kind: dict[str, float] = {}
    stop_at_s = (1 - MEASURING_SHARE) * budget.deadline.left_s()
    for i in np.argsort(sizes, kind='stable'):
        member = members[i]
        member.cost = math.inf
        kind = f'{sizes[i]} {member.card.network} {member.predictor.inference} {member.frontend_key}'
        if kind not in cost_of_kind:
            if budget.deadline.left_s() < stop_at_s:
                continue
            try:
                with opened('model', [member.name]):
                    cost_of_kind[kind] = measure_cost(member.predictor)
            except Exception:  # predicting fails again, and then the reason is kept
                cost_of_kind[kind] = math.inf
        member.cost = cost_of_kind[kind]


def order_members(members: Sequence[EnsembleMember], audio_s: float, left_s: float) -> list[EnsembleMember]:
    '''Order models for a deadline: the cheapest good one, then good ones by cost, then the others by cost.

    A model is good whose score is little below the best. Where the cheapest good model alone would need more than
    the time left, the cheapest of all is first. A stack scores a row once all its runs have predicted it, so the
    first models of all runs come before any second.
    '''
    scores = [-math.inf if m.card.oof_score is None else m.card.oof_score for m in members]
    is_bad = [-math.inf < score < max(scores) - GOOD_MARGIN for score in scores]
    order = sorted(range(len(members)), key=lambda i: (is_bad[i], members[i].cost, -scores[i]))
    if members[order[0]].cost * audio_s > left_s:
        cheapest = min(order, key=lambda i: members[i].cost)
        order.remove(cheapest)
        order.insert(0, cheapest)
    runs = [(members[i].stack, members[i].run) for i in order]
    turns = [runs[:k].count(run) for k, run in enumerate(runs)]
    return [members[order[k]] for k in np.argsort(turns, kind='stable')]


def describe_plan(members: Sequence[EnsembleMember], audio_s: float, left_s: float) -> str:
    '''Say how many models fit in the time left, in their order, by their costs.'''
    costs = np.array([member.cost for member in members])
    n_fit = int((np.cumsum(costs) * audio_s <= left_s).sum())
    needed_s = costs[np.isfinite(costs)].sum() * audio_s
    at_least = '' if np.isfinite(costs).all() else 'more than '
    time_left = f'{needed_s:.0f} s for {audio_s:.0f} s of audio, {max(0.0, left_s):.0f} s are left'
    return f'plan: {n_fit} of {len(members)} models fit: they need {at_least}{time_left}'


def plan_members(
    members: Sequence[EnsembleMember], budget: TimeBudget, audio_s: float
) -> tuple[list[EnsembleMember], str]:
    '''Measure models and order them for the time left; say how many fit, if any was measured.'''
    measure_costs(members, budget)
    left_s = budget.deadline.left_s()
    ordered = order_members(members, audio_s, left_s)
    is_measured = any(member.cost for member in members)
    return ordered, describe_plan(ordered, audio_s, left_s) if is_measured else ''
