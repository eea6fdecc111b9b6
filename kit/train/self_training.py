'''Self-training: train, relabel with out-of-fold predictions, and train again.'''

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.clock import Deadline, process_start, set_deadline
from kit.core.errors import KitError
from kit.core.files import expand_pattern, file_digest, write_text
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.stretches import is_validated, row_names, stretches_of
from kit.labels.table import apply_corrections, clip_labels, read_clip_table, read_corrections
from kit.train.held_out import held_out_models
from kit.train.pseudo_labels import forget_labels, noisy_rows
from kit.train.recipe import Recipe, check_recipe
from kit.train.relabel import relabel
from kit.train.run import (
    Run,
    check_run,
    choose_folds,
    read_box_files,
    read_training_table,
    run_files,
    train_run,
    with_bands,
)

BoxFiles = Sequence[str | Path] | None


@dataclass(frozen=True)
class SelfTraining:
    '''What all trainings of a self-training share. `options` are passed to train_run.

    `teacher_runs` are finished runs, which label with the runs of the iterations.
    '''

    recipe: Recipe
    audio: str | Path
    clock: Deadline | None
    train: Callable[..., Run]
    options: Mapping[str, Any]
    teacher_runs: Sequence[str | Path] = ()

    def train_one(
        self, number: int, table: Path, soft: Path, out: Path, n_left: int, boxes: BoxFiles, **options: Any
    ) -> Run:
        '''Train the run of an iteration, with an equal share of the time for each of the `n_left` trainings to come.'''
        options |= {'soft': soft, 'boxes': boxes, 'deadline': None, **self.options}
        if self.clock is not None:
            # train_run counts its deadline from the start of the process.
            options['deadline'] = self.clock.now() + self.clock.left_s() / n_left - process_start()
        return self.train(self.recipe.at_stage(number), table, self.audio, out, **options)

    def train_teachers(self, table: Path, soft: Path, folder: Path, n_left: int, boxes: BoxFiles) -> tuple[Path, Path]:
        '''Train every run but the last, and relabel after each. What is done already is not done again.

        Returns the table and the soft labels for the last run.
        '''
        plan = self.recipe.self_training
        shared = self.options.keys() & {'device', 'threads', 'progress'}
        runtime_options = {name: self.options[name] for name in shared}
        current_table = self.first_table(table, folder)
        current_soft = soft
        for number in range(1, plan.iterations + 1):
            teachers = [folder / str(k) for k in range(number)]
            labels = folder / str(number) / 'labels'
            # A training writes oof.csv last, and relabel writes relabel.json last.
            if not (teachers[-1] / 'oof.csv').is_file():
                n_to_come = n_left + 1 - number
                self.train_one(number - 1, current_table, current_soft, teachers[-1], n_to_come, boxes)
            if not (labels / 'relabel.json').is_file():
                result = relabel(
                    [*teachers[-plan.teachers :], *self.teacher_runs],
                    self.audio,
                    labels,
                    number=number,
                    table=table,
                    boxes=boxes if plan.method(number) == 'windows' else None,
                    plan=plan,
                    **runtime_options,
                )
                print(result, flush=True)
            current_table = labels / 'table.csv'
            current_soft = labels / 'soft.csv'
        return current_table, current_soft

    def first_table(self, table: Path, folder: Path) -> Path:
        '''Return the table of the first training.

        Before the method `agreement` it is curated.csv, without the labels of noisy clips: a model that was
        trained on a wrong label would agree with it. If all clips are noisy, their labels are all there is.
        '''
        plan = self.recipe.self_training
        if not plan.iterations or plan.method(1) != 'agreement':
            return table
        frame = read_clip_table(table)
        rows = noisy_rows(frame, plan)
        if len(rows) == len(frame):
            return table
        curated = folder / 'curated.csv'
        files = run_files(self.recipe, forget_labels(frame, rows), np.asarray(frame['fold']))
        write_text(curated, files['folds.csv'])
        return curated


def self_train(
    recipe: Recipe,
    table: str | Path | None,
    audio: str | Path,
    out: str | Path,
    only_folds: Sequence[int] | None = None,
    group_column: str | None = None,
    boxes: Sequence[str | Path] | None = None,
    soft: str | Path | None = None,
    all_data: bool = False,
    deadline: str | float | None = None,
    corrections: str | Path | None = None,
    teacher_runs: Sequence[str | Path] | None = None,
    train: Callable[..., Run] = train_run,
    **options: Any,
) -> Run:
    '''Train a recipe with the iterations of its self_training. The last run is in `out`.

    `corrections` is a JSON or CSV with new labels; the other parameters are train_run's. Iteration k trains in
    rounds/k, from scratch, on rounds/k/labels: the corrected table, relabelled by the runs before it and by the
    finished `teacher_runs`. Each training gets an equal share of the time to the deadline.
    Errors: as train_run and relabel; KitError for a folder of another self-training, and for teachers of other folds
    '''
    check_recipe(recipe)
    plan = recipe.self_training
    if teacher_runs and not plan.iterations:
        raise KitError('teacher_runs make pseudo-labels, for iterations: use --set self_training.iterations=1.')
    if not plan.iterations and corrections is None:
        chosen = {'boxes': boxes, 'soft': soft, 'all_data': all_data, 'deadline': deadline}
        return train(recipe, table, audio, out, only_folds, group_column, **chosen, **options)
    folder = Path(out)
    rounds = folder / 'rounds'
    box_labels = read_box_files(boxes)
    frame = read_training_table(table, box_labels)
    frame = frame.assign(fold=choose_folds(frame, recipe, group_column))
    if group_column is not None:
        frame = frame.assign(group=frame[group_column])
    if corrections is not None:
        frame = apply_corrections(frame, read_corrections(corrections))
    teachers = [path for run in teacher_runs or () for path in check_teacher(run, frame)]
    files = run_files(recipe, frame, np.asarray(frame['fold']), boxes, soft)
    inits = expand_pattern(str(options['init']).replace('{fold}', '*')) if options.get('init') else []
    write_rounds(rounds, files | digests_text('init.json', inits) | digests_text('teachers.json', teachers))
    soft_file = rounds / 'soft.csv' if soft is None else Path(soft)
    if soft is None:
        # Soft labels of no clip, which name all classes: a relabelled table may lack some of them.
        classes = clip_labels(frame).classes if box_labels is None else box_labels.classes
        write_soft_labels(soft_file, SoftLabels((), classes, np.zeros((0, len(classes)))))
    clock = None if deadline is None else set_deadline(deadline)
    job = SelfTraining(recipe, audio, clock, train, options, teacher_runs or ())

    # Refuse now what the last training would refuse: a folder that holds a run of another recipe.
    last = recipe.at_stage(plan.iterations)
    last = last if box_labels is None else with_bands(last, box_labels)
    check_run(folder, {'recipe.json': run_files(last, frame, np.asarray(frame['fold']))['recipe.json']})
    last_table, last_soft = job.train_teachers(rounds / 'folds.csv', soft_file, rounds, plan.iterations + 1, boxes)
    options = {'only_folds': only_folds, 'all_data': all_data}
    return job.train_one(plan.iterations, last_table, last_soft, folder, 1, boxes, **options)


def check_teacher(run: str | Path, frame: Any) -> list[Path]:
    '''Return a finished run's checkpoints.'''
    stretches = stretches_of(frame)
    is_scored = is_validated(frame['fname'], stretches)
    names = np.array(row_names(frame['fname'], stretches))
    models = held_out_models(Path(run))
    for path, held in models.items():
        if {*held.names} != {*names[is_scored & (frame['fold'] == held.tagger.card.fold)]}:
            raise KitError(
                f"{path} held out other clips than this training's fold {held.tagger.card.fold}, so its labels would "
                f'leak: train both with the same folds, e.g. --table {Path(run) / "folds.csv"}.'
            )
    return [*map(Path, models)]


def digests_text(name: str, paths: Sequence[Path]) -> dict[str, str]:
    '''The text of a file with the digests of other files, by its name; nothing without these.'''
    digests = [[path.name, file_digest(path)] for path in paths]
    return {name: json.dumps(digests, indent=1) + '\n'} if digests else {}


def write_rounds(rounds: Path, files: Mapping[str, str]) -> None:
    '''Write the texts that identify a self-training.'''
    for name in ('folds.csv', 'recipe.json', 'labels.json', 'init.json', 'teachers.json'):
        path = rounds / name
        text = files.get(name, '')
        if path.is_file() and path.read_text(encoding='utf-8') != text:
            raise KitError(f'{path} belongs to another self-training: choose another --out.')
        write_text(path, text)
