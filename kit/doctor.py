'''`doctor`: check the machine and some checkpoints, and estimate whether a submission fits its deadline.'''

import contextlib
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from kit.audio.decode import header_duration_s, scan_folder
from kit.core.clock import parse_duration
from kit.core.errors import KitError
from kit.core.runtime import VERSION, cpu_count, device_problem, free_memory_bytes, pick_device
from kit.core.worker import source_file, source_root
from kit.infer.backend import check_backend
from kit.infer.ensemble import measure_cost
from kit.infer.predictor import Predictor
from kit.infer.stack import ModelSpec, open_models
from kit.models.checkpoint import find_models
from kit.models.tagger import Tagger, TaggerCard

PACKAGES = ('torch', 'torchaudio', 'timm', 'numpy', 'pandas', 'scikit-learn', 'soundfile', 'tqdm', 'openvino')


def run_doctor(
    checkpoints: Sequence[str] | None = None,
    audio: str | None = None,
    deadline: str | None = None,
    backend: str = 'torch',
) -> str:
    '''Describe this machine and some checkpoints, and estimate whether they fit the deadline on a folder of audio.

    Options:
        checkpoints: files or patterns of checkpoints to check
        audio: the folder of clips to submit
        deadline: time limit like 55m
        backend: as in submit

    Errors: KitError where a checkpoint cannot be used, after everything was printed
    '''
    check_backend(backend)
    lines = describe_machine()
    paths = [Path(name) for name, _ in find_models(checkpoints)] if checkpoints else []
    usable: list[ModelSpec] = []
    unusable = 0
    for path in paths:
        try:
            models, stacks = open_models(path)
            descriptions = [f'{model.name}: {describe_model(model)}' for model in models]
        except KitError as error:
            unusable += 1
            lines.append(f'{path}: NOT USABLE: {error}')
            continue
        for stack in stacks:
            score = stack.card.oof_score
            lines.append(f'{path}: a stack, {stack.card.kind}, oof {stack.card.metric} {score}, of these models:')
        lines += descriptions
        usable += models
    if audio is not None:
        lines.append(describe_job(Path(audio), usable, deadline, backend))
    if unusable:
        print(*lines, sep='\n', flush=True)
        raise KitError(f'{unusable} of {len(paths)} checkpoints cannot be used; the reasons are above.')
    return '\n'.join(lines)


def describe_machine() -> list[str]:
    '''Return lines on versions, packages, cores, memory, folders and GPUs.'''
    source = source_file() or source_root() / 'kit'
    folder = Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    packages = ', '.join(f'{name} {package_version(name)}' for name in PACKAGES)
    lines = [
        f'audiotag-kit {VERSION}, Python {platform.python_version()} on {sys.platform}',
        f'packages: {packages}',
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


def describe_job(audio: Path, models: Sequence[ModelSpec], deadline: str | None, backend: str) -> str:
    '''Return a line on how much audio there is, and how long the models need for it, as measured here.'''
    files, others = scan_folder(audio)
    durations_s = [header_duration_s(path) for path in files]
    audio_s = sum(seconds or 0.0 for seconds in durations_s)
    line = f'{audio}: {len(files)} audio files, {audio_s:.0f} s'
    if None in durations_s:
        line += f' without {durations_s.count(None)} files whose headers state no length'
    if others:
        line += f', {len(others)} files passed over, as they are no audio, e.g. {others[0].name!r}'
    if not models:
        return line
    device = pick_device()[0]
    # Own networks need their code, which is not here.
    known = [model for model in models if not is_custom(model.card)]
    predictors = [Predictor(model.build(), device, fuse=True, backend=backend) for model in known]
    needed_s = audio_s * sum(map(measure_cost, predictors))
    line += f'; {len(known)} of {len(models)} models, measured on this {device.type}, need {needed_s:.0f} s'
    if deadline is None:
        return line
    # Decoding, start-up and slower neighbours take time too.
    fits = needed_s * 1.3 + 10 < parse_duration(deadline)
    return f'{line}: {"fits" if fits else "DOES NOT FIT"} into {deadline}, with a margin of 30 % and 10 s'


def is_custom(card: TaggerCard) -> bool:
    '''Return whether a tagger's network is the user's own.'''
    return str(card.network.get('family')).startswith('custom:')


def package_version(name: str) -> str:
    '''Return the version of an installed package, or "missing".'''
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return 'missing'


def describe_model(model: ModelSpec) -> str:
    '''Return a line on a model; build its network to see whether its tensors fit, if its code is there.'''
    card = model.card
    family = card.network.get('family')
    if not is_custom(card):
        model.build()
    tensors = {} if isinstance(model.source, Tagger) else model.source.tensors
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    score = 'no oof score' if card.oof_score is None else f'oof {card.metric} {card.oof_score:.4f}'
    scores = f'{card.output} scores'
    if card.calibration:
        scores += ', calibrated'
    return (
        f'{family}, {millions:.2f} M values, {len(card.classes)} classes, fold {card.fold}, {score}, {scores}, '
        f'inference mode {card.inference.mode} at {card.frontend.sample_rate} Hz'
    )
