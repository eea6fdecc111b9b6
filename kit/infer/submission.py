'''Do one submission, step by step: read, write priors, build models, predict, write the CSV and its report.'''

import contextlib
import dataclasses
import json
import math
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, Stopwatch
from kit.core.errors import KitError
from kit.core.files import file_identity, locked, text_digest, write_json
from kit.core.ranks import rank_is_running, take_share
from kit.core.runtime import VERSION, get_rank, get_world_size, pick_device, tune_process
from kit.core.worker import opened
from kit.infer.blend import BLENDS
from kit.infer.cache import PredictionCache
from kit.infer.ensemble import collect_frontends, predict_under_bar
from kit.infer.job import SubmissionWriter, SubmitJob, SubmitOptions
from kit.infer.loader import SpectrogramLoader
from kit.infer.planner import EnsembleMember, doubtful_outputs, member_report, reasons_by_name, rounded_spans
from kit.infer.predictor import Predictor
from kit.infer.rows import RowScores, blend_priors, check_members
from kit.infer.stack import EnsembleRows
from kit.infer.submit_inputs import (
    SubmitInputs,
    code_identity,
    decoder_functions,
    holds_job,
    model_identity,
    own_classes,
    read_inputs,
)
from kit.infer.template import RowPlan, read_report, report_path, write_submission


def share_path(job: SubmitJob, rank: int) -> Path:
    '''The file by which a process says that its share is done, for the report: job's key, failures, notes.'''
    return job.state_folder / str(rank) / 'share.json'


def wait_for_shares(job: SubmitJob, key: str, loader: SpectrogramLoader) -> None:
    '''Wait until the other processes have done their shares or have ended, or time is up; read their failures.'''
    waiting = [*range(1, get_world_size())]
    while waiting and not job.budget.should_stop():
        for rank in list(waiting):
            found = ''
            with contextlib.suppress(OSError, ValueError):
                found, failures, notes = json.loads(share_path(job, rank).read_bytes())
            if found == key:
                loader.failures |= {int(clip): reason for clip, reason in failures.items()}
                loader.notes |= {int(clip): tuple(texts) for clip, texts in notes.items()}
            if found == key or not rank_is_running(rank):
                waiting.remove(rank)
        threading.Event().wait(0.1 if waiting else 0.0)


def add_cached(rows: RowScores, files: Sequence[Path]) -> None:
    '''Add what earlier calls and other processes predicted for files that are still the same.'''
    if any(member.cache.digests or member.coarse.digests for member in rows.members):
        for clip in rows.plan.rows_of:
            lacking = [member for member in rows.members if clip not in member.predicted]
            identity = file_identity(files[clip]) if lacking else ''
            for member in lacking:
                logits = member.cache.find(identity)
                coarse = member.coarse.find(identity)
                if logits is not None:
                    member.predicted.add(clip)
                    rows.add(member, clip, logits)
                elif coarse is not None:
                    rows.add(member, clip, coarse)


def merge_shares(rows: RowScores, files: Sequence[Path], failures: Collection[int]) -> bool:
    '''Add what the other processes have predicted by now; return whether a model that works still lacks clips.'''
    for member in rows.members:
        if member.cache.path is not None:
            member.cache.read_files(member.cache.path)
    add_cached(rows, files)
    for member in rows.members:
        done = {*member.predicted, *member.failed_clips, *failures}
        member.finished = rows.plan.rows_of.keys() <= done
    return not all(member.finished or member.failure for member in rows.members)


def run_submission(options: SubmitOptions, deadline: Deadline) -> dict[str, Any]:
    '''Do a whole submission in this process; return its report.'''
    return run_job(SubmitJob(options, deadline))


def run_job(job: SubmitJob) -> dict[str, Any]:
    '''Do a whole submission in this process, alone on its CSV; return its report.'''
    inputs = read_inputs(job)  # before anything is written, so that a call with a mistake leaves nothing
    with locked(job.state_folder, job.options.out):
        with contextlib.suppress(OSError):
            share_path(job, get_rank()).unlink()
        write_priors(job, inputs)
        return finish_submission(job, inputs)


def write_priors(job: SubmitJob, inputs: SubmitInputs) -> None:
    '''Write a CSV of priors, unless an earlier call of the same job left a better one.'''
    out = job.options.out
    if not job.is_mute and not holds_job(out, inputs):
        cards = [model.card for model in inputs.models]
        weights = [model.weight for model in inputs.models]
        priors = blend_priors(cards, weights, inputs.template.classes)
        began = job.deadline.now()
        with job.watch.measure('write'):
            write_submission(out, inputs.template, np.tile(priors, (len(inputs.template.ids), 1)))
        job.budget.write_s = job.deadline.now() - began
        write_json(report_path(out), {'job': inputs.key, 'state': 'priors', 'notes': job.notes})


def finish_submission(job: SubmitJob, inputs: SubmitInputs) -> dict[str, Any]:
    '''Predict all that the time allows, write the CSV and the report, and return the report.'''
    options = job.options
    job.is_quiet = False
    tune_process()
    device, remark = pick_device(options.device)
    if remark:
        job.note(remark)
    if not inputs.files:
        job.note(f'NO AUDIO FILES in {options.audio}: all is prior')
    if BLENDS[options.blend].whole_set:
        job.note(f"--blend {options.blend} lets a row's answer depend on the other rows")
    for name in ('prior_shift', 'site_prior'):
        if getattr(options, name):
            job.note(f"--{name.replace('_', '-')} lets a row's answer depend on the other rows")
    with job.watch.measure('models'):
        members = build_members(job, inputs, device)
    if options.prior_shift or options.prevalences:
        guessed = [member.name for member in members if member.card.is_custom and len({*member.card.prevalences}) == 1]
        job.note_names(
            guessed, 'models are taken to have seen all classes equally often: see wrap_network(prevalences=)'
        )
    check_members(members, options.blend, inputs.plan)
    rows = EnsembleRows(inputs.stacks, inputs.template, inputs.plan, members, options.blend, options.postprocess)
    writer = SubmissionWriter(job)
    loader = make_loader(job, inputs, members)
    add_cached(rows, inputs.files)
    if np.any(rows.done):
        writer.write(rows)
    loader.read_headers()
    loader.chunks = take_share(loader.chunks)
    job.plan.set_clips({clip: loader.durations_s[clip] for chunk in loader.chunks for clip in chunk.clips})
    if job.plan.has_deadline:
        with job.watch.measure('plan'):
            job.plan.measure(members)
        plan = job.plan.describe(members)
        if plan:
            job.note(plan)
    predict_rows(job, inputs, loader, rows, writer)
    if get_rank():
        write_json(share_path(job, get_rank()), [inputs.key, loader.failures, loader.notes])
    elif get_world_size() > 1:
        wait_for_shares(job, inputs.key, loader)
        if merge_shares(rows, inputs.files, loader.failures) and not job.budget.stopped:
            rest = make_loader(job, inputs, members)
            rest.failures |= loader.failures
            rest.read_headers()
            job.plan.set_clips(rest.durations_s)
            predict_rows(job, inputs, rest, rows, writer)
            merge_shares(rows, inputs.files, rest.failures)
            loader.failures |= rest.failures
            loader.notes |= rest.notes
    note_results(job, inputs, rows)
    is_nothing = bool(inputs.plan.rows_of) and not np.any(rows.done)
    failures = [member.failure for member in members if member.failure] or list(loader.failures.values())
    state = 'stopped by the deadline' if job.budget.stopped else 'finished'
    if is_nothing and failures:
        state = f'nothing was predicted: {failures[0]}'
    writer.write(rows)
    report = build_report(job, inputs, rows, loader, state)
    writer.write_report(report)
    if writer.problem:
        raise writer.problem
    # With a deadline, the CSV that exists is the result.
    if is_nothing and failures and job.deadline.at == math.inf:
        what = 'every model failed' if any(member.failure for member in members) else 'no file could be read'
        holds = 'priors' if report['rows_with_prior'] == report['rows'] else 'earlier predictions'
        raise KitError(f'{what}, {options.out} holds {holds}: {failures[0]}')
    return report


def make_loader(job: SubmitJob, inputs: SubmitInputs, members: Sequence[EnsembleMember]) -> SpectrogramLoader:
    '''Create the loader of all files that have rows.'''
    device = members[0].predictor.device
    loader = SpectrogramLoader(
        inputs.files,
        collect_frontends(members, device),
        device,
        threads=job.options.threads,
        decoders=job.options.decoders,
        clips=sorted(inputs.plan.rows_of),
        is_cached=lambda digest: all(digest in member.cache for member in members),
        timeout_s=max(1.0, min(60.0, job.deadline.left_s() / 4)),
        watch=job.watch,
    )
    loader.isolate(*job.suspects.among(inputs.files))
    return loader


def predict_rows(
    job: SubmitJob, inputs: SubmitInputs, loader: SpectrogramLoader, rows: RowScores, writer: SubmissionWriter
) -> None:
    '''Predict the loader's chunks with every model; write the CSV now and then, and after each model.'''
    members = list(rows.members)
    previewed = job.plan.make_preview(members) if get_world_size() == 1 else None
    preview = job.plan.preview
    if previewed is not None:
        job.note(f'{Path(previewed.name).name} predicts windows side by side first, as time is short')
    running = [*members, *filter(None, [preview])]
    for member, clip, logits in predict_under_bar(running, loader, 'submit', job.options.progress, job.plan):
        if previewed is None or member is not preview:
            rows.add(member, clip, logits)
        elif loader.digests[clip] not in previewed.cache:
            alike = set(rows.rows_alike)
            rows.add(previewed, clip, logits)
            rows.rows_alike = alike  # that the coarse windows are shared says nothing
        if member.finished:
            writer.write(rows)
            writer.write_report(build_report(job, inputs, rows, loader, 'at work'))
        elif writer.is_due():
            if get_world_size() > 1:
                merge_shares(rows, inputs.files, loader.failures)
            writer.write(rows)


def note_results(job: SubmitJob, inputs: SubmitInputs, rows: RowScores) -> None:
    '''Note what was lost or is doubtful; a model without any finite prediction has failed.'''
    members = rows.members
    for member in members:
        name = Path(member.name).name
        if member.cache.problem:
            job.note(f'the predictions of {name} cannot be kept: {member.cache.problem}')
        if member.failed_clips and not member.predicted:
            member.failure = f'none of {len(member.failed_clips)} clips: {next(iter(member.failed_clips.values()))}'
        elif member.failed_clips:
            reason = next(iter(member.failed_clips.values()))
            job.note(f'{name} has no prediction for {len(member.failed_clips)} clips: {reason}')
        if member.failure:
            job.note(f'{name} FAILED after {len(member.predicted)} clips: {member.failure}')
    waiting = [Path(member.name).name for member in members if not (member.finished or member.failure)]
    if job.budget.stopped:
        job.note_names(waiting, 'models did not come to all files in time')
    for text in sorted({member.predictor.compilation for member in members}):
        if text.startswith('torch:'):
            job.note(f'--backend {job.options.backend}: {text}')
    late_rows = [inputs.template.ids[row] for row in sorted(rows.rows_after_end)]
    job.note_names(late_rows, 'rows are windows after the end of their file and get the prior')
    alike_rows = [inputs.template.ids[row] for row in sorted(rows.rows_alike)]
    job.note_names(alike_rows, 'rows lie within one window of a model with another row: use a shorter window_s')
    for warning in doubtful_outputs(members):
        job.note(warning)
    split_files = [inputs.names[clip] for clip in sorted(rows.split_clips)]
    job.note_names(split_files, 'clips beyond max_frames were predicted in overlapping pieces')


def build_members(job: SubmitJob, inputs: SubmitInputs, device: torch.device) -> list[EnsembleMember]:
    '''Build every model, with the predictions that an earlier call cached beside the CSV.'''
    options = job.options
    members = []
    failures: list[str] = []
    changed: dict[str, list[str]] = {}
    for model in inputs.models:
        own = model.card.inference
        inference = inference_of(options.overrides, inputs.plan, own)
        if inference != own:
            changes = {name: value for name, value in vars(inference).items() if value != vars(own)[name]}
            changed.setdefault(str(changes), []).append(Path(model.name).name)
        cache_path = None
        try:
            if model.name in job.suspects.models_out:
                raise KitError(job.suspects.models_out[model.name])
            with opened('model', [model.name]):
                tagger = model.build(options.networks)
        except KitError as error:
            if model.stack is not None or len(inputs.models) == 1:
                raise
            failures.append(str(error))
            job.note(f'{model.name} IS LEFT OUT: {error}')
            continue
        if model.path:
            code = [*own_classes(tagger.network), *decoder_functions(options.decoders)]
            settings = [inference.canonical_json(), options.precision, options.backend, device.type]
            if model.card.is_custom:  # its checkpoint does not hold what its builder decides
                code.append((options.networks or {})[model.card.family.removeprefix('custom:')])
                settings.append(str(tagger.network))
            digest = text_digest(model_identity(model), code_identity(code), *settings)[:16]
            cache_path = job.state_folder / f'{model.path.stem}_{digest}.npz'
        sizes = options.batch_frames, options.precision
        predictor = Predictor(tagger, device, *sizes, inference, fuse=True, backend=options.backend)
        cache = PredictionCache.open(cache_path, job.deadline.now)
        member = EnsembleMember(model.name, predictor, cache, model.weight, model.stack, model.run)
        member.watch = Stopwatch(job.watch.began)
        member.coarse = PredictionCache.open(cache_path and cache_path.with_suffix('.coarse.npz'), job.deadline.now)
        members.append(member)
    if not members:
        raise KitError(failures[0])
    for changes_text, names in changed.items():
        which = names[0] if len(names) == 1 else f'{len(names)} models, e.g. {names[0]},'
        job.note(f'{which} use other inference settings than they were scored with: {changes_text}')
    return members


def inference_of(changes: dict[str, Any], plan: RowPlan, own: InferenceConfig) -> InferenceConfig:
    '''A model's inference settings, with what the options or window rows change.'''
    if plan.form == 'window' and own.mode == 'full' and 'mode' not in changes:
        period_s = float(plan.period_s or own.window_s)
        changes = {'mode': 'windows', 'window_s': period_s, 'hop_s': period_s} | changes
    inference = dataclasses.replace(own, **changes)
    idle = {'window_s', 'hop_s'} & changes.keys()
    if inference.mode == 'full' and idle:
        raise KitError(f'{min(idle)} has no effect on whole clips: add --mode windows, or leave it out.')
    return inference


def build_report(
    job: SubmitJob, inputs: SubmitInputs, rows: RowScores, loader: SpectrogramLoader, state: str
) -> dict[str, Any]:
    '''Describe a submission: what was predicted, what failed and why, and where the time went.'''
    # Clips whose predictions are cached are not decoded again: the last report has the notes on them.
    earlier = read_report(job.options.out).get('audio_notes', {})
    return {
        'kit': VERSION,
        'job': inputs.key,
        'csv': str(job.options.out),
        'state': state,
        **rows.counts(),
        'id_form': inputs.plan.form,
        'files': len(inputs.files),
        'files_failed': reasons_by_name(loader.failures, inputs.names),
        'audio_notes': loader.notes_by_name(inputs.names, earlier),
        'files_split': [inputs.names[clip] for clip in sorted(rows.split_clips)],
        'files_without_row': [inputs.names[i] for i in inputs.plan.idle_files],
        'rows_after_end': [inputs.template.ids[row] for row in sorted(rows.rows_after_end)],
        'rows_alike': [inputs.template.ids[row] for row in sorted(rows.rows_alike)],
        'rows_without_file': inputs.plan.rows_without_file(inputs.template.ids),
        'audio_s': round(loader.audio_s, 3),
        'device': str(loader.device),
        'processes': get_world_size(),
        'blend': job.options.blend,
        'stacks': [stack.card.kind for stack in inputs.stacks],
        'postprocess': job.options.postprocess.to_dict(),
        'plan': job.plan.steps,
        'models': [member_report(member, inputs.names) for member in rows.members],
        'seconds': {name: round(s, 3) for name, s in job.watch.seconds.items()},
        'seconds_total': round(time.time() - job.began, 3),
        'spans': rounded_spans(job.watch),
        'deadline_s': job.deadline_s,
        'notes': job.notes,
    }
