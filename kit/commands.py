'''The commands of the command line, and the functions that only they need.'''

import json
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.fingerprint import fingerprint_frontend, fingerprint_of_spec, near_duplicates
from kit.cli import Command
from kit.core.config import Config
from kit.core.errors import KitError
from kit.core.runtime import tune_process
from kit.demo import find_data, fitting_checkpoints, run_demo
from kit.doctor import bench, run_doctor
from kit.infer.loader import SpectrogramLoader
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.infer.template import locate_clips
from kit.labels.boxes import box_table, read_boxes
from kit.labels.folds import group_keys, make_folds, note_similar_classes
from kit.labels.layouts import ROW_S, find_competition, read_competition, write_frame
from kit.labels.table import class_names, read_clip_table
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import FAMILIES
from kit.models.tagger import wrap_ensemble, wrap_network
from kit.plots.clips import draw_contact_sheet
from kit.report import show
from kit.train.ablation import probe
from kit.train.oof import predict_oof
from kit.train.pseudo_labels import at_iteration
from kit.train.recipe import Recipe, SourceConfig
from kit.train.recipes import RECIPES, VARIANTS, find_recipe
from kit.train.run import Run, train_run
from kit.train.self_training import relabel, self_train
from kit.train.stacking import stack


def train_by_name(
    recipe: str,
    out: str,
    audio: str | None = None,
    table: str | None = None,
    boxes: list[str] | None = None,
    competition: str | None = None,
    soft: str | None = None,
    small: bool = False,
    overrides: list[str] | None = None,
    only_folds: list[int] | None = None,
    all_data: bool = False,
    group_column: str | None = None,
    deadline: str | None = None,
    backgrounds: str | None = None,
    corrections: str | None = None,
    teacher_runs: list[str] | None = None,
    init: str | None = None,
    memory_gb: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Run:
    '''Train a recipe by its name, with its iterations of self-training.

    The same command continues where the last one stopped.

    Options:
        recipe: a name that the command `recipes` lists
        out: the folder of the run
        table: CSV of fname,labels and more columns; with boxes, recording_id,fold, or clips without boxes
        boxes: two CSVs, of true and of false boxes
        competition: a competition's folder, instead of audio, table and boxes
        soft: CSV of soft labels, used where the table's labels are unknown
        small: train the recipe's small variant, for two cores
        overrides: settings to change, e.g. epochs=20 network.width=32
        only_folds: train only these folds, e.g. 0,1
        all_data: train one model on all clips instead of one per fold
        group_column: column of the table; rows with equal values share a fold
        deadline: time limit like 8h; the best weights by then are kept
        backgrounds: folder of sounds to mix into the crops
        corrections: JSON or CSV with new labels for some clips, or clips to drop
        teacher_runs: finished runs of the same folds, which make the pseudo-labels together with this recipe
        init: checkpoint or state dict that the networks start from; {fold} in its name stands for the fold
        memory_gb: memory for clips; past it they are mapped to files in TMPDIR; by default half of the memory
    '''
    chosen = dict(locals())  # the arguments, as there is nothing else yet
    for name in ('recipe', 'small', 'overrides', 'competition'):
        del chosen[name]
    settings = find_recipe(recipe, small, overrides)
    if competition is not None:
        if audio or table or boxes:
            raise KitError('competition names the audio, the table and the boxes: leave these out.')
        settings = find_recipe(recipe, small, [*competition_settings(settings, competition), *(overrides or ())])
        data = read_competition(competition, Path(out) / 'tables', settings.self_training.iterations > 0)
        audio, group_column = str(data.audio), group_column or data.group_column
        table = None if data.table is None else str(data.table)
        boxes = None if data.boxes is None else [str(path) for path in data.boxes]
        print(data, flush=True)
    elif audio is None:
        raise KitError('give --audio FOLDER and --table CSV or --boxes CSV CSV, or --competition FOLDER.')
    chosen |= {'audio': audio, 'table': table, 'boxes': boxes, 'group_column': group_column}
    return self_train(settings, **chosen)


def competition_settings(recipe: Recipe, folder: str) -> list[str]:
    '''The overrides that a competition asks for: its metric, and windows as long as its rows.'''
    data = find_competition(folder)
    settings = [f'metric={data.metric}']
    if data.scored_classes:
        settings.append(f'scored_classes={json.dumps(data.scored_classes)}')
    if data.soundscapes and recipe.inference.mode == 'full':
        settings += ['inference.mode=windows', f'inference.window_s={ROW_S}', f'inference.hop_s={ROW_S}']
    print(f'note: the competition asks for {" ".join(settings)}', flush=True)
    return settings


def list_recipes(name: str | None = None, small: bool = False) -> str:
    '''List the recipes with their sources, or print every setting of one with its value and its meaning.

    Options:
        name: the recipe whose settings to print
        small: print its small variant
    '''
    if name is None and small:
        raise KitError('small is the small form of one recipe: name it, recipes NAME --small.')
    if name is None:
        lines = [f'{recipe.name:22} {recipe.source}' for recipe in RECIPES.values()]
        lines += [f'{variant:22} {base} with {changes}' for variant, (base, changes) in VARIANTS.items()]
        return '\n'.join(lines)
    recipe = find_recipe(name, small)
    lines = [f'{recipe.name}: {recipe.source}']
    for key, value, meaning in explain_settings(recipe.to_dict(), Recipe):
        if key not in ('name', 'source'):
            text = value if value and isinstance(value, str) else json.dumps(value, separators=(',', ':'))
            lines.append(f'  {key} = {text}'.ljust(44) + f'  {meaning}')
    return '\n'.join([*lines, *list_stages(recipe)])


def list_stages(recipe: Recipe) -> list[str]:
    '''Describe the trainings of a recipe in order, a line each, if it has several.'''
    plan = recipe.self_training
    lines = ['stages:', '  training with the settings above']
    if recipe.pretrain:
        lines.insert(1, f'  pretraining, from random weights, with {recipe.pretrain}')
        lines[-1] += ', from the pretrained networks'
    for number in range(1, plan.iterations + 1):
        changes = at_iteration(plan.stages, number) or 'the settings above'
        lines.append(f'  training on pseudo-labels {number} (method {plan.method(number)}), with {changes}')
    return lines if len(lines) > 2 else []


def explain_settings(
    values: Mapping[str, Any], config: type[Config] | None, prefix: str = '', meaning: str = ''
) -> Iterator[tuple[str, Any, str]]:
    '''Yield the dotted name, the value and the help text of each setting in nested `values`.

    The class `config` holds the help texts and choices. Without one, all values share the text `meaning`.
    '''
    help_texts = {}
    for item in fields(config) if config else ():
        choices = ', '.join(map(str, item.metadata['choices']))
        help_texts[item.name] = item.metadata['help'] + (f' [{choices}]' if choices else '')
    for name, value in values.items():
        key = prefix + name
        text = help_texts.get(name, meaning)
        if isinstance(value, dict) and value:
            yield from explain_settings(value, settings_class(config, key, value), f'{key}.', text)
        else:
            yield key, value, text


def settings_class(config: type[Config] | None, key: str, values: Mapping[str, Any]) -> type[Config] | None:
    '''The class that explains a group of settings, or None for a dict of free names.'''
    # A network's settings are a dict, as their names depend on its family.
    if 'family' in values:
        return FAMILIES[values['family']]
    group, _, name = key.rpartition('.')
    if group == 'sources':
        return SourceConfig
    kind = typing.get_type_hints(config)[name] if config else None
    return kind if isinstance(kind, type) and issubclass(kind, Config) else None


def compute_fingerprints(names: Sequence[str], audio: str, threads: int | None, progress: bool) -> list[np.ndarray]:
    '''The fingerprint of each clip, and an empty one, with a note, for a file that cannot be read.'''
    tune_process()
    fingerprints = [np.zeros(0, np.int64) for _ in names]
    loader = SpectrogramLoader(
        locate_clips(names, Path(audio)), {'': fingerprint_frontend()}, torch.device('cpu'), threads=threads
    )
    for chunk in loader.load_chunks('fingerprint', progress):
        clips, specs = loader.specs(chunk, '')
        for clip, spec in zip(clips, specs, strict=True):
            fingerprints[clip] = fingerprint_of_spec(spec)
        loader.drop(chunk, '')
    loader.print_failures(names)
    return fingerprints


def add_folds(
    out: str,
    table: str | None = None,
    boxes: list[str] | None = None,
    audio: str | None = None,
    n_folds: int = 5,
    seed: int = 0,
    group_column: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> str:
    '''Write a copy of a table with a column `fold`: classes are spread evenly, and groups stay in one fold.

    With `audio`, near-duplicate clips are found and share a fold too. A column `group` then holds the name of the
    first clip of each group that copies, excerpts and `group_column` link.

    Options:
        out: the CSV to write
        table: CSV of fname,labels and more
        boxes: instead of a table two CSVs, of true and of false boxes; the result has a row per recording
        audio: the folder of the clips, to search for near-duplicates
        n_folds: number of folds
        seed: decides between equally good folds
        group_column: column of the table; rows with equal values share a fold
    '''
    if (table is None) == (boxes is None) or (boxes is not None and len(boxes) != 2):
        raise KitError('give --table CSV, or --boxes and two CSVs, of true and of false boxes.')
    frame = read_clip_table(table) if table else box_table(read_boxes(*boxes or ()), None)
    for column in ('fold', 'group') if audio and group_column != 'group' else ('fold',):
        if column in frame:
            raise KitError(f'{table} has a {column} column already: drop it to make new ones.')

    fold_column = group_column
    details = group_column or 'none (--group-column, --audio)'
    if audio:
        frame['group'], details = group_copies(frame, group_column, audio, threads, progress)
        fold_column = 'group'
    frame['fold'] = make_folds(frame, n_folds, seed, fold_column)
    write_frame(Path(out), frame)
    note_similar_classes(class_names(frame['labels']))
    counts = ', '.join(map(str, frame['fold'][frame['fold'] >= 0].value_counts().sort_index()))
    if always := int((frame['fold'] < 0).sum()):
        counts += f', and {always} in fold -1, in every training, as a class has no other'
    return f'{out}: {len(frame)} clips in folds of {counts}, groups kept together: {details}'


def group_copies(
    frame: Any, group_column: str | None, audio: str, threads: int | None, progress: bool
) -> tuple[Any, str]:
    '''The column `group` of a table, and a sentence on the near-duplicates that were found.

    A clip's group is the first clip that copies or `group_column` link to it; empty for a lone clip.
    '''
    names = frame['fname']
    copies = near_duplicates(compute_fingerprints(list(names), audio, threads, progress))
    by_column = frame.assign(fname=group_keys(frame, group_column), group=copies)
    groups = names.groupby(group_keys(by_column, 'group'))
    column = groups.transform('first').where(groups.transform('size') > 1, '')

    sizes = Counter(copy for copy in copies if copy)
    if not sizes:
        return column, 'no near-duplicates found'
    first = ', '.join(names[np.array(copies) == next(iter(sizes))][:5])
    return column, f'{len(sizes)} groups of {sizes.total()} near-duplicates, the first: {first}'


COMMANDS = {
    'demo': Command(
        run_demo,
        'make toy data, train on it, and submit: the whole kit in about a minute',
        'Start here',
        also=(find_data, fitting_checkpoints),
    ),
    'doctor': Command(run_doctor, 'check this machine, and whether checkpoints are usable', 'Start here'),
    'recipes': Command(list_recipes, 'list the recipes; `recipes NAME` explains every setting of one', 'Start here'),
    'folds': Command(add_folds, 'add a fold column to a table; near-duplicates share a fold', 'Train'),
    'train': Command(
        train_by_name,
        'train a recipe: one checkpoint per fold, and out-of-fold predictions',
        'Train',
        also=(train_run, find_recipe),
        takes_workers=True,
    ),
    'oof': Command(
        predict_oof,
        "predict each fold's held-out clips again, score them, and compare options of submit",
        'Train',
        also=(submit,),
        takes_workers=True,
    ),
    'relabel': Command(
        relabel,
        'make pseudo-labels for a table with models that did not train on its clips',
        'Train',
        takes_workers=True,
    ),
    'stack': Command(stack, 'train a second-level model on the predictions of several runs', 'Train'),
    'show': Command(show, 'compare runs, or look at a submission; --out report.html adds plots', 'Look'),
    'augment': Command(draw_contact_sheet, 'plot a clip under every augmentation', 'Look'),
    'probe': Command(probe, 'measure how scores fall when frequency bands or stretches of time are masked', 'Look'),
    'bench': Command(bench, 'predict some files, and reckon which models fit the deadline for all', 'Submit'),
    'submit': Command(
        submit,
        'predict a folder of audio and write a valid CSV before the deadline',
        'Submit',
        also=(predict_clips, wrap_network, wrap_ensemble, save_tagger, load_tagger),
        takes_workers=True,
    ),
}
