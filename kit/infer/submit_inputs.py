'''Read all that a submission needs before it predicts: the files, the checkpoints and the template.'''

import inspect
import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kit.audio.decode import Decoder, scan_folder
from kit.core.clock import parse_duration
from kit.core.errors import KitError, choose, suggest
from kit.core.files import audio_stem, file_identity, text_digest
from kit.infer.blend import BLENDS
from kit.infer.job import SubmitJob, check_steps
from kit.infer.loader import SpectrogramLoader
from kit.infer.postprocess import NO_WINDOWS
from kit.infer.rows import class_columns, common_classes
from kit.infer.stack import ModelSpec, Stack, models_with_classes, open_models
from kit.infer.template import (
    RowPlan,
    Template,
    file_identities,
    plan_notes,
    plan_rows,
    read_report,
    read_template,
    split_window,
    with_classes,
)
from kit.models.checkpoint import Checkpoint, content_digest, tensors_of
from kit.models.tagger import Tagger


@dataclass(frozen=True)
class SubmitInputs:
    '''All that a submission reads before it predicts.

    `names` are the files' paths below the audio folder. `key` is equal for jobs that compute the same submission.
    '''

    files: list[Path]
    names: list[str]
    models: list[ModelSpec]
    stacks: list[Stack]
    template: Template
    plan: RowPlan
    key: str


def read_inputs(job: SubmitJob) -> SubmitInputs:
    '''List the files, open the checkpoints, and read the template.'''
    options = job.options
    choose('blend', options.blend, BLENDS)
    files, others = scan_folder(options.audio)
    names = [path.relative_to(options.audio).as_posix() for path in files]
    skipped: dict[str, str] = {}
    models, stacks = open_models(options.checkpoints, options.weights, skipped)
    if options.template:
        template = read_template(options.template)
    else:
        id_column = 'fname' if options.rows in ('auto', 'template') else 'row_id'
        template = Template(id_column, tuple(names), common_classes([model.card for model in models]))
    if template.answer:
        known = stacks[0].card.classes if stacks else common_classes([model.card for model in models])
        template = with_classes(template, known)
        unknown = [name for name, (_, k) in zip(template.cell_ids, template.cells, strict=True) if k < 0]
        job.note_names(unknown, 'rows are of CLASSES unknown to every model, and False')
    if template.answer == 'label':
        job.note(f'each row gets its {template.n_labels} best classes, for the column label of {options.template}')
    if not stacks:
        models = models_with_classes(models, template, skipped)
    for name, reason in skipped.items():
        job.note(f'{name} IS LEFT OUT: {reason}')
    note_classes(job, template, models, stacks)
    template, plan = choose_rows(job, template, files, names)
    if options.postprocess.needs_windows and plan.form != 'window':
        raise KitError(NO_WINDOWS)
    check_steps(options, template, bool(stacks))
    n_rows = len(template.ids)
    without_file = plan.rows_without_file(template.ids)
    job.note_names(without_file, f'of {n_rows} rows have no file and get the prior')
    if names and n_rows and len(without_file) == n_rows:
        folder = f'{options.audio}, which holds {names[0]!r}'
        job.note(f'WARNING: NO ROW of the template has a file in {folder}: is it the right folder?')
    job.note_names([names[i] for i in plan.idle_files], 'files have no row and are left out')
    job.note_names([path.name for path in others], 'files are passed over, as they are no audio')
    for text in plan_notes(plan):
        job.note(text)
    weights = [model.weight for model in models]
    of_stacks = [(stack.weight, stack.digest) for stack in stacks]
    settings = (options.blend, options.overrides, options.postprocess, weights, of_stacks, template)
    key = text_digest(str(settings), *names, '', *map(file_identity, files), '', *map(model_identity, models))
    builders = (options.networks or {}).values()
    key = text_digest(key, code_identity([*builders, *decoder_functions(options.decoders)]))
    return SubmitInputs(files, names, models, stacks, template, plan, key)


def note_classes(job: SubmitJob, template: Template, models: Sequence[ModelSpec], stacks: Sequence[Stack]) -> None:
    '''Note the template's classes that no model knows, or only some do.'''
    known_names = [stack.card.classes for stack in stacks]
    known_names += [model.card.classes for model in models if model.stack is None]
    known = np.stack([class_columns(names, template.classes) for names in known_names]) >= 0
    by_none = [name for k, name in enumerate(template.classes) if not known[:, k].any()]
    if by_none:
        nearest = suggest(by_none[0], known_names[0])
        job.note_names(by_none, f'CLASSES of the template are unknown to every model and get a prior ({nearest})')
    by_some = [name for k, name in enumerate(template.classes) if known[:, k].any() and not known[:, k].all()]
    if by_some and BLENDS[job.options.blend].whole_row:
        raise KitError(
            f'--blend {job.options.blend} compares the classes of a row, but some models lack {by_some[0]!r}: use mean.'
        )
    job.note_names(by_some, 'classes are known to some models only, which alone predict them')


def holds_job(out: Path, inputs: SubmitInputs) -> bool:
    '''Decide whether an earlier call of the same job left its CSV.'''
    try:
        return read_report(out).get('job') == inputs.key and read_template(out) == inputs.template
    except KitError:
        return False


def model_identity(model: ModelSpec) -> str:
    '''A text that is equal for models with equal cards and tensors, and for taggers with equal code.'''
    if isinstance(model.source, Checkpoint):
        return model.source.digest
    network = model.source.network
    content = content_digest(model.card.canonical_json(), tensors_of(network))
    return content + code_identity(own_classes(network))


def code_identity(objects: Sequence[Any]) -> str:
    '''A text that is equal for classes and functions with equal source code, else one that never comes again.

    So predictions that the user's old code made are not used for the new.
    '''
    try:
        return text_digest(*map(inspect.getsource, objects))
    except (OSError, TypeError, SyntaxError):  # SyntaxError: a cell of IPython's own language
        return uuid.uuid4().hex


def own_classes(network: nn.Module) -> list[type]:
    '''The classes of a network's modules, and their bases, that are the user's, not the kit's, torch's or timm's.'''
    classes = {base for module in network.modules() for base in type(module).__mro__[:-1]}
    libraries = ('torch.', 'timm.', Tagger.__module__.partition('.')[0])
    return sorted((c for c in classes if not c.__module__.startswith(libraries)), key=lambda c: c.__qualname__)


def decoder_functions(decoders: Sequence[Decoder] | None) -> list[Any]:
    '''The functions with which the user reads files.'''
    return [function for decoder in decoders or () for function in (decoder.read, decoder.duration_s)]


# A rest of a file shorter than this share of a row has no row of its own.
NO_ROW_SHARE = 0.1
# Stubs have three rows. A long template without a file is the right one for another folder.
MAX_STUB_ROWS = 10


def choose_rows(
    job: SubmitJob, template: Template, files: Sequence[Path], names: Sequence[str]
) -> tuple[Template, RowPlan]:
    '''Plan the template's rows, or a row per window of every file: where asked for, or where the template is a stub.

    A template is a stub where it is short, all its ids are windows, and none of them has a file.
    '''
    rows = job.options.rows
    identities = file_identities(files)
    plan = plan_rows(template.ids, names, identities)
    stems, ends_s = zip(*map(split_window, template.ids), strict=True) if template.ids else ((), ())
    is_stub = 0 < len(template.ids) <= MAX_STUB_ROWS and None not in ends_s and not template.cells
    is_stub = is_stub and bool(files) and not plan.rows_of
    if rows == 'template' or (rows == 'auto' and not is_stub):
        return template, plan
    if rows == 'auto':
        row_s = RowPlan('window', tuple(map(stems.index, stems)), ends_s, ()).period_s or 0.0
        if not row_s > 0:
            cure = 'give rows, e.g. --rows 5s'
            raise KitError(f'the id {template.ids[0]!r} does not tell how long a row is: {cure}.')
    else:
        row_s = parse_duration(rows)
    first_s = 0.0 if 0 in ends_s else row_s
    counts = count_windows(job, files, row_s)
    forms: list[Sequence[str]] = [[Path(name).stem for name in names], [audio_stem(name) for name in names], names]
    ids = []
    for stem, count in zip(next(form for form in forms if len({*form}) == len(names)), counts, strict=True):
        ids += [f'{stem}_{first_s + window * row_s:g}' for window in range(count)]
    if is_stub:
        job.note(
            f'THE TEMPLATE IS A STUB: none of its {len(template.ids)} ids, e.g. {template.ids[0]!r}, names one of the '
            f'{len(files)} files in {job.options.audio}. The CSV has a row for every {row_s:g} s of each file; '
            "--rows template keeps the template's."
        )
    template = replace(template, ids=tuple(ids))
    return template, plan_rows(template.ids, names, identities)


def count_windows(job: SubmitJob, files: Sequence[Path], row_s: float) -> list[int]:
    '''Count the windows of each file by its header; a file that cannot be read has as many as most others.'''
    loader = SpectrogramLoader(
        files,
        {},
        torch.device('cpu'),
        threads=job.options.threads,
        decoders=job.options.decoders,
        timeout_s=max(1.0, min(10.0, job.deadline.left_s() / 8)),
    )
    loader.isolate(*job.suspects.among(files))
    loader.read_headers()
    loader.close()
    counts = {
        clip: max(1, math.ceil(seconds / row_s - NO_ROW_SHARE))
        for clip, seconds in loader.durations_s.items()
        if seconds is not None
    }
    usual = Counter(counts.values()).most_common(1)
    return [counts.get(clip, usual[0][0] if usual else 1) for clip in range(len(files))]
