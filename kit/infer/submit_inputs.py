"""Read all that a submission needs before it predicts: the files, the checkpoints and the template."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.audio.decode import scan_folder
from kit.core.errors import KitError, choose
from kit.core.files import file_identity, text_digest
from kit.infer.blend import BLENDS
from kit.infer.identity import code_identity, decoder_functions, model_identity
from kit.infer.job import SubmitJob, check_steps
from kit.infer.postprocess import NO_WINDOWS
from kit.infer.rows import class_columns, common_classes, nearest_name
from kit.infer.stack import ModelSpec, Stack, models_with_classes, open_models
from kit.infer.template import RowPlan, Template, plan_notes, read_report, read_template, with_classes
from kit.infer.window_rows import choose_rows


@dataclass(frozen=True)
class SubmitInputs:
    """All that a submission reads before it predicts.

    `names` are the files' paths below the audio folder. `key` is equal for jobs that compute the same submission.
    """

    files: list[Path]
    names: list[str]
    models: list[ModelSpec]
    stacks: list[Stack]
    template: Template
    plan: RowPlan
    key: str


def read_inputs(job: SubmitJob) -> SubmitInputs:
    """List the files, open the checkpoints, and read the template."""
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


def note_classes(
    job: SubmitJob, template: Template, models: Sequence[ModelSpec], stacks: Sequence[Stack]
) -> None:
    """Note the template's classes that no model knows, or only some do."""
    known_names = [stack.card.classes for stack in stacks]
    known_names += [model.card.classes for model in models if model.stack is None]
    known = np.stack([class_columns(names, template.classes) for names in known_names]) >= 0
    by_none = [name for k, name in enumerate(template.classes) if not known[:, k].any()]
    if by_none:
        nearest = nearest_name(by_none[0], known_names[0])
        what = (
            f'CLASSES of the template are unknown to every model and get a prior (did you mean {nearest!r}?)'
        )
        job.note_names(by_none, what)
    by_some = [name for k, name in enumerate(template.classes) if known[:, k].any() and not known[:, k].all()]
    if by_some and BLENDS[job.options.blend].whole_row:
        raise KitError(
            f'--blend {job.options.blend} compares the classes of a row, but some models lack {by_some[0]!r}: use mean.'
        )
    job.note_names(by_some, 'classes are known to some models only, which alone predict them')


def holds_job(out: Path, inputs: SubmitInputs) -> bool:
    """Decide whether an earlier call of the same job left its CSV."""
    try:
        return read_report(out).get('job') == inputs.key and read_template(out) == inputs.template
    except KitError:
        return False
