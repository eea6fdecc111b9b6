'''Run every model of an ensemble over every clip, in an order that suits the time left.'''

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from kit.audio.frontend import Frontend
from kit.audio.windows import InferenceConfig, pool_windows
from kit.core.clock import TimeBudget, advance, progress_bar
from kit.core.errors import KitError, one_line
from kit.core.runtime import get_world_size
from kit.core.worker import opened
from kit.infer.loader import Chunk, SpectrogramLoader
from kit.infer.planner import EnsembleMember, Plan, read_seconds
from kit.infer.predictor import WindowLogits
from kit.models.tagger import Tagger

NOT_FINITE = "the network's answer is no finite number"
# What torch says of an input that a network was not made for.
SHAPE_WORDS = ('shape', 'size', 'channels', 'dimension')
SHAPE_HINT = (
    'a network gets (batch, channels, mel bands, frames): one channel unless frontend.channels has more, and clips '
    'extended by up to 5 %, unless wrap_network has inference=InferenceConfig(bucket_ratio=1.0), or mode="windows"'
)
UNPOOLED = (
    'ranking scores without a calibration cannot be pooled over windows: run `oof` on the run, which fits one, or '
    'use mode full.'
)


def collect_frontends(members: Sequence[EnsembleMember], device: torch.device) -> dict[str, Frontend]:
    '''Move each distinct frontend to the device, once.'''
    return {member.frontend_key: member.tagger.frontend.to(device) for member in members}


def predict_ensemble(
    members: Sequence[EnsembleMember], loader: SpectrogramLoader, plan: Plan | None = None
) -> Iterator[tuple[EnsembleMember, int, WindowLogits]]:
    '''Run every model over every clip, and yield each clip's logits as (member, clip, logits).

    Models run one by one, in the plan's order; its time budget is checked between batches. Failures are values: of a
    model in `member.failure`, of logits that are not finite in `member.failed_clips`, of a file in `loader.failures`.
    Where processes share the clips, `member.finished` is left to the caller.
    '''
    plan = plan or Plan()
    budget = plan.budget
    is_shared = get_world_size() > 1
    waiting = list(members)
    while waiting and not budget.should_stop():
        member = plan.next_member(waiting)
        waiting.remove(member)
        key = member.frontend_key
        is_last_user = all(other.frontend_key != key for other in waiting)
        for chunk in loader.chunks:
            if budget.should_stop():
                member.cache.flush()
                return
            try:
                outputs = predict_chunk(member, loader, chunk, budget)
            except Exception as error:
                member.failure = one_line(error)[:500]
                if member.card.is_custom and any(word in member.failure for word in SHAPE_WORDS):
                    member.failure += f'; {SHAPE_HINT}'
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
        plan.update_costs(member, waiting)


def predict_under_bar(
    members: Sequence[EnsembleMember], loader: SpectrogramLoader, task: str, progress: bool, plan: Plan | None = None
) -> Iterator[tuple[EnsembleMember, int, WindowLogits]]:
    '''Run predict_ensemble under a progress bar over seconds of audio; let the loader's threads end.'''
    models = sum(member is not (plan and plan.preview) for member in members)
    with contextlib.closing(loader), progress_bar(models * loader.total_s, task, 's of audio', progress) as bar:
        for member, clip, logits in predict_ensemble(members, loader, plan):
            yield member, clip, logits
            advance(bar, loader.durations_s[clip] or 0.0)


def predict_chunk(
    member: EnsembleMember, loader: SpectrogramLoader, chunk: Chunk, budget: TimeBudget
) -> list[tuple[int, WindowLogits]]:
    '''The logits of a chunk's clips, from the model's cache if all are there, else from the network.

    A partly cached chunk is predicted whole: a resumed job without a deadline forms the same batches.
    '''
    clips = loader.load(chunk)
    if not all(loader.digests[clip] in member.cache for clip in clips):
        clips, specs = loader.specs(chunk, member.frontend_key)
        names = [member.name, *loader.paths(clips)]
        with member.watch.measure('network'), loader.watch.measure('network'), opened('model', names):
            outputs = member.predictor.predict(specs, budget)
        done_s = [loader.seconds[clip] for clip, output in zip(clips, outputs, strict=True) if output is not None]
        member.read_s += read_seconds(member.predictor.inference, done_s)
        finite = []
        for clip, output in zip(clips, outputs, strict=True):
            if output and np.isfinite(output.logits).all():
                finite.append((loader.digests[clip], output))
            elif output:
                member.fail_clip(clip, NOT_FINITE)
        files = {loader.identities[clip]: loader.digests[clip] for clip in clips if clip in loader.identities}
        member.cache.digests |= files
        member.cache.add(finite)
    entries = member.cache.entries
    return [(clip, entries[loader.digests[clip]]) for clip in clips if loader.digests[clip] in entries]


def clip_probabilities(tagger: Tagger, inference: InferenceConfig, logits: np.ndarray) -> np.ndarray:
    '''Turn the logits of a clip's windows into one score per class: calibrate, convert to probabilities, pool.

    Ranking scores without a calibration stay as they are; only rank blends take them. Shape: logits (W, K) -> (K,)
    '''
    if tagger.card.is_calibrated:
        return pool_windows(tagger.probabilities(torch.from_numpy(logits)), inference).numpy()
    if len(logits) > 1:
        raise KitError(UNPOOLED)
    return logits[0]
