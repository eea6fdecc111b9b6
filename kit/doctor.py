'''`doctor` checks the machine and some checkpoints; `bench` reckons what a submission by them would take.'''

import contextlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kit.audio.decode import scan_folder
from kit.core.clock import Deadline, TimeBudget, parse_duration
from kit.core.errors import KitError
from kit.core.runtime import VERSION, cpu_count, device_problem, free_memory_bytes, start_runtime
from kit.core.worker import source_file, source_root
from kit.infer.backend import has_openvino
from kit.infer.ensemble import predict_ensemble
from kit.infer.job import SubmitJob, SubmitOptions
from kit.infer.planner import Plan, measure_cost
from kit.infer.stack import ModelSpec, open_models
from kit.infer.submission import build_members, make_loader
from kit.infer.submit_inputs import read_inputs
from kit.models.checkpoint import find_models
from kit.models.tagger import Tagger
from kit.plots.runs import draw_timeline

PACKAGES = ('torch', 'torchaudio', 'timm', 'numpy', 'pandas', 'scikit-learn', 'soundfile', 'tqdm', 'openvino')


def run_doctor(checkpoints: Sequence[str] | None = None) -> str:
    '''Describe this machine and some checkpoints.

    Options:
        checkpoints: files or patterns of checkpoints to check

    Errors: KitError where a checkpoint cannot be used, after everything was printed
    '''
    lines = describe_machine()
    paths = [Path(name) for name, _ in find_models(checkpoints)] if checkpoints else []
    unusable = 0
    for path in paths:
        try:
            models, stacks = open_models(path)
            descriptions = [f'{model.name}: {describe_model(model)}' for model in models]
        except KitError as error:
            unusable += 1
            lines.append(f'{path}: NOT USABLE: {error}')
            continue
        for card in (stack.card for stack in stacks):
            lines.append(f'{path}: a stack, {card.kind}, oof {card.metric} {card.oof_score}, of these models:')
        lines += descriptions
    if unusable:
        print(*lines, sep='\n', flush=True)
        raise KitError(f'{unusable} of {len(paths)} checkpoints cannot be used; the reasons are above.')
    return '\n'.join(lines)


def describe_machine() -> list[str]:
    '''Lines on versions, packages, cores, memory, folders and GPUs.'''
    source = source_file() or source_root() / 'kit'
    folder = Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    lines = [
        f'audiotag-kit {VERSION}, Python {platform.python_version()} on {sys.platform}',
        f'packages: {", ".join(f"{name} {package_version(name)}" for name in PACKAGES)}',
        f'cpu: {cpu_count()} cores, {free_memory_bytes() / 2**30:.1f} GiB of memory free',
        f'paths: the kit is {source}; the working folder is {folder}, with {free_gb:.0f} GB free',
    ]
    for i in range(torch.cuda.device_count()):
        problem = device_problem(torch.device('cuda', i))
        state = f'CANNOT COMPUTE: {problem}' if problem else 'computes'
        lines.append(f'cuda:{i}: {torch.cuda.get_device_name(i)}, {state}')
    if not torch.cuda.device_count():
        lines.append('cuda: none')
    return lines


def package_version(name: str) -> str:
    '''The version of an installed package, or "missing".'''
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return 'missing'


def describe_model(model: ModelSpec) -> str:
    '''A line on a model; build its network to see whether its tensors fit, if its code is there.'''
    card = model.card
    if not card.is_custom:
        model.build()
    tensors = {} if isinstance(model.source, Tagger) else model.source.tensors
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    score = 'no oof score' if card.oof_score is None else f'oof {card.metric} {card.oof_score:.4f}'
    scores = f'{card.output} scores' + (', calibrated' if card.calibration else '')
    if card.is_custom:
        scores += f', to submit from Python with networks={{{card.family.removeprefix("custom:")!r}: build}}'
    return (
        f'{card.family}, {millions:.2f} M values, {len(card.classes)} classes, fold {card.fold}, {score}, {scores}, '
        f'inference mode {card.inference.mode} at {card.frontend.sample_rate} Hz'
    )


def bench(
    checkpoints: Sequence[str],
    audio: str,
    files: int | None = None,
    deadline: str = '90m',
    sample: int = 24,
    rows: str = 'auto',
    device: str | None = None,
    out: str | None = None,
) -> str:
    '''Predict some files with every installed backend, and reckon what all files of a test would take.

    The models run in the order that `submit` would choose before the deadline.

    Options:
        checkpoints: files or patterns of checkpoints
        audio: a folder of clips like those of the test
        files: how many files the test has; by default as many as the folder
        deadline: time limit like 90m
        sample: how many files to predict here
        rows: as in submit, e.g. 5s
        out: image of the timeline with the fastest backend, e.g. plan.png
    '''
    limit_s = parse_duration(deadline)
    found, others = scan_folder(Path(audio))
    chosen = found[:: max(1, len(found) // max(1, sample))][: max(1, sample)]
    if not chosen:
        raise KitError(f'{audio} holds no audio files: give a folder of clips like those of the test.')
    n_files = files or len(found)
    lines = [f'{audio}: {len(found)} audio files, {len(others)} others; {len(chosen)} files stand for {n_files}']
    reports = []
    for backend in ('torch', 'openvino') if has_openvino() else ('torch',):
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(chosen):
                (Path(folder) / f'{number}{path.suffix}').symlink_to(path.resolve())
            options = SubmitOptions(checkpoints, Path(folder), Path(folder) / 'bench.csv', rows=rows)
            options = replace(options, device=device, backend=backend, progress=False)
            reports.append(forecast(options, n_files / len(chosen), limit_s))
        lines += describe_forecast(backend, reports[-1])
    if out:
        draw_timeline(min(reports, key=lambda report: float(report['seconds_total']))).save(out)
    return '\n'.join(lines)


def forecast(options: SubmitOptions, factor: float, limit_s: float) -> dict[str, Any]:
    '''Predict the files of a folder, and reckon the report of a submission of `factor` times as many.'''
    job = SubmitJob(options, Deadline())
    inputs = read_inputs(job)
    with job.watch.measure('models'):
        members = build_members(job, inputs, start_runtime(options.device).device)
        for member in members:  # compiles and reserves memory, once however many files there are
            measure_cost(member.predictor)
    loader = make_loader(job, inputs, members)
    loader.read_headers()
    with contextlib.closing(loader):
        for _ in predict_ensemble(members, loader, job.plan):
            pass
    failures = [member.failure for member in members if member.failure]
    if failures or not loader.seconds:
        raise KitError(f'nothing to measure: {[*failures, *loader.failures.values()][0]}')
    now_s = 0.0
    spans = {}
    for stage in ('models', 'headers', 'decode', 'frontend'):
        needed_s = job.watch.seconds.get(stage, 0.0) * (1 if stage == 'models' else factor)
        spans[stage] = [(now_s, now_s + needed_s)]
        now_s += needed_s
    plan = Plan(TimeBudget(Deadline(limit_s, lambda: now_s)))
    plan.set_clips(loader.seconds, factor)
    for member in members:
        member.predicted.clear()  # the clips stand for others
    plan.compare_runs(members)
    models = []
    waiting = list(members)
    while waiting:
        member = plan.next_member(waiting)
        waiting.remove(member)
        end_s = now_s + plan.needed_s(member)
        models.append({'checkpoint': '/'.join(Path(member.name).parts[-2:]), 'spans': [(now_s, end_s)]})
        now_s = end_s
    facts = {'state': f'planned with {options.backend}', 'seconds_total': now_s, 'deadline_s': limit_s}
    return {**facts, 'spans': spans, 'models': models, 'audio_s': loader.audio_s * factor}


def describe_forecast(backend: str, report: dict[str, Any]) -> list[str]:
    '''Lines on the seconds of each stage and model, and on how many models fit.'''
    stages = [f'{stage} {end - start:.1f} s' for stage, [(start, end)] in report['spans'].items()]
    lines = [f'{backend}: {", ".join(stages)}']
    n_fit = 0
    for model in report['models']:
        [(start, end)] = model['spans']
        n_fit += end <= report['deadline_s']
        speed = f'{report["audio_s"] / max(end - start, 1e-9):.0f} s of audio a second'
        lines.append(f'  {model["checkpoint"]}: {end - start:.1f} s, until {end:.1f} s; {speed}')
    share = report['seconds_total'] / report['deadline_s']
    lines.append(f'  {n_fit} of {len(report["models"])} models fit; all of them need {share:.0%} of the time')
    return lines
