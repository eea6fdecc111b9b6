'''Self-training: train, relabel with out-of-fold predictions, and train again.'''

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, divide_time, set_deadline
from kit.core.errors import KitError
from kit.core.files import expand_pattern, file_digest, write_json, write_text
from kit.core.runtime import start_runtime
from kit.infer.ensemble import clip_probabilities
from kit.infer.postprocess import estimate_prevalences, scale_odds
from kit.infer.predictor import Predictor
from kit.infer.rows import fitted_prevalences
from kit.infer.stack import average_windows
from kit.labels.boxes import read_boxes
from kit.labels.layouts import write_frame
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import (
    UNLABELLED,
    apply_corrections,
    clip_labels,
    is_validated,
    read_clip_table,
    read_corrections,
    row_names,
    stretches_of,
)
from kit.models.tagger import TaggerCard
from kit.train.held_out import held_out_models, predict_recordings
from kit.train.pseudo_labels import (
    LEAKS,
    RELABEL_METHODS,
    SelfTrainingConfig,
    at_iteration,
    correct_by_boxes,
    forget_labels,
    noisy_rows,
    pick_soft,
)
from kit.train.recipe import Recipe, check_recipe
from kit.train.run import (
    Run,
    check_run,
    read_box_files,
    read_training_table,
    run_files,
    train_run,
    with_bands,
    with_windows,
)


def window_inference(card: TaggerCard, hop_s: float) -> InferenceConfig:
    '''Choose windows as long as the tagger's own, or as its training crops.'''
    length_s = card.inference.window_s
    mode = card.inference.mode
    if mode == 'full':
        mode = 'windows'
        length_s = card.recipe.get('crop_s', length_s)
    return replace(card.inference, mode=mode, window_s=length_s, hop_s=min(hop_s, length_s))


def predict_pseudo_labels(
    runs: Sequence[str | Path],
    audio: str | Path,
    hop_s: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    prior_shift: bool = False,
    unlabelled: Sequence[str] = (),
) -> tuple[SoftLabels, dict[str, int]]:
    '''Predict soft labels of clips: the mean over all models, folds and seeds, that never trained on the clip.

    Returns the labels, and how many clips each model predicted. Without `hop_s` labels are of whole clips, with it of
    windows that far apart, with 0 of the windows that each model uses; windows nearest in time are averaged. With
    `prior_shift`, probabilities are scaled from the prevalences of the training to those estimated from the clips.
    Clips that are `unlabelled` are also predicted by runs whose tables lack them.

    Source: second place, RFCX (a window every 0.5 s, out of fold, ensembled)
    '''
    runtime = start_runtime(device, threads, progress)
    classes: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    # For each clip, each model's spans in seconds (W, 2) and probabilities (W, K).
    predictions: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path, held in [pair for run in runs for pair in held_out_models(Path(run), unlabelled).items()]:
        tagger = held.tagger
        card = tagger.card
        classes = classes or card.classes
        if not card.is_calibrated or card.classes != classes:
            reason = 'other classes' if card.is_calibrated else 'ranks, which are no labels before `oof`'
            raise KitError(f'{path} gives {reason}: use calibrated runs of one set of classes.')
        if hop_s and card.frontend.trim_db is not None:
            raise KitError(f"{path} trims a clip's ends, so its windows are not at their times: leave it out.")
        inference = window_inference(card, hop_s) if hop_s else card.inference
        predictor = Predictor(tagger, runtime.device, inference=inference, fuse=True)
        clips = list(dict.fromkeys([*held.clips, *held.unlabelled]))
        (outputs,), _ = predict_recordings(clips, [predictor], Path(path).name, Path(audio), runtime)
        counts[path] = len(outputs)
        probs = {}
        for clip, output in outputs.items():
            probs[clip] = tagger.probabilities(torch.from_numpy(output.logits)).numpy()
            if hop_s is None:
                probs[clip] = clip_probabilities(tagger, inference, output.logits)[None]
        if prior_shift and probs:
            trained = fitted_prevalences(card)
            estimated = estimate_prevalences(np.concatenate(list(probs.values())), trained)
            probs = {clip: scale_odds(of_clip, trained, estimated) for clip, of_clip in probs.items()}
        for clip, of_clip in probs.items():
            # A whole clip has one row of probabilities; its span is not used.
            spans_s = np.array(outputs[clip].spans[: len(of_clip)]) / card.frontend.frames_per_s
            predictions.setdefault(clips[clip], []).append((spans_s, of_clip))
    if not predictions:
        raise KitError(f'{", ".join(map(str, runs))} predict no finite number for any clip: train them anew.')
    names: list[str] = []
    spans: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for name, of_models in sorted(predictions.items()):
        first_spans, _ = of_models[0]
        centred = [(spans_s.mean(axis=1), of_clip) for spans_s, of_clip in of_models]
        names += [name] * len(first_spans)
        spans.append(first_spans)
        means.append(average_windows(centred, first_spans.mean(axis=1)))
    targets = np.concatenate(means).clip(0, 1)
    times = () if hop_s is None else np.concatenate(spans).T
    return SoftLabels(tuple(names), classes, targets, *times), counts


@dataclass(frozen=True)
class RelabelResult:
    '''The paths of new labels, and the report on them.'''

    table: Path
    soft: Path
    report: Mapping[str, Any]

    def __str__(self) -> str:
        counts = ', '.join(f'{count} {what}' for what, count in self.report['counts'].items())
        return f'{self.table}: {self.report["rows"]} rows, {counts}; {self.soft.name}. {self.report["leaks"]}'

    __repr__ = __str__


def relabel(
    run: Sequence[str | Path],
    audio: str | Path,
    out: str | Path,
    method: str | None = None,
    top_k: Sequence[float] | None = None,
    number: int = 1,
    table: str | Path | None = None,
    boxes: Sequence[str | Path] | None = None,
    overrides: Sequence[str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    plan: SelfTrainingConfig | None = None,
) -> RelabelResult:
    '''Write table.csv, soft.csv and relabel.json: new labels, by models that never trained on the clips they label.

    Options:
        run: folders that `train` wrote
        out: the folder to write
        method: plain, windows, agreement, snr or curate; plain unless given
        top_k: best clips or windows of each iteration, shares or counts
        number: the iteration, from 1
        table: the CSV to relabel; the first run's unless given
        boxes: CSVs of true and of false boxes, which correct windows
        overrides: further settings, e.g. powers=[2] hop_s=1 noisy_sources=[]
    '''
    plan = (plan or SelfTrainingConfig()).override(list(overrides or ()))
    if top_k is not None:
        plan = replace(plan, top_k=tuple(top_k))
    if method:
        plan = replace(plan, methods=(method,))
    name = plan.method(number)
    if boxes and name != 'windows':
        raise KitError(f'boxes correct windows, which method {name} does not write: use windows.')
    frame = read_clip_table(table or Path(run[0]) / 'folds.csv')
    if 'end_s' in frame and name not in ('plain', 'windows'):
        count = int((frame['end_s'] < np.inf).sum())
        print(f'note: method {name} labels whole clips: {count} stretches are left out', flush=True)
        frame = frame[frame['end_s'] == np.inf].drop(columns=['begin_s', 'end_s']).reset_index(drop=True)
    clips = set(frame['fname'])
    hop_s = None if name in ('plain', 'agreement') else plan.hop_s
    unlabelled = [*frame['fname'][frame['source'] == UNLABELLED]] if 'source' in frame else []
    options = device, threads, progress, plan.prior_shift, unlabelled
    soft, models = predict_pseudo_labels(run, audio, hop_s, *options)
    soft = pick_soft(soft, [clip in clips for clip in soft.names])
    if boxes:
        soft = correct_by_boxes(soft, read_boxes(boxes[0], boxes[1]))
    relabeled = RELABEL_METHODS[name](frame, soft, plan, number)
    power = at_iteration(plan.powers, number) or 1.0
    labels = replace(relabeled.soft, targets=relabeled.soft.targets**power)
    frame = relabeled.frame
    report = {
        'method': name,
        'round': number,
        'rows': len(frame),
        'counts': relabeled.counts,
        'leaks': LEAKS,
        'models': models,
        'without_prediction': sorted(clips - soft.rows.keys()),
        'settings': plan.to_dict(),
    }
    folder = Path(out)
    write_frame(folder / 'table.csv', frame)
    write_soft_labels(folder / 'soft.csv', labels)
    write_json(folder / 'relabel.json', report)
    return RelabelResult(folder / 'table.csv', folder / 'soft.csv', report)


@dataclass(frozen=True)
class SelfTraining:
    '''What all trainings of a self-training share: `options` for train_run, finished `teacher_runs` that label too.'''

    recipe: Recipe
    audio: str | Path
    boxes: Sequence[str | Path] | None
    clock: Deadline | None
    train: Callable[..., Run]
    options: Mapping[str, Any]
    teacher_runs: Sequence[str | Path] = ()

    def train_one(self, number: int, table: Path, soft: Path, out: Path, **options: Any) -> Run:
        '''Train the run of an iteration, in an equal share of the time for the trainings to come.'''
        options |= {'soft': soft, 'boxes': self.boxes, 'deadline': None, **self.options}
        if self.clock is not None:
            n_left = self.recipe.self_training.iterations + 1 - number
            options['deadline'] = divide_time(self.clock, n_left)
        return self.train(self.recipe.at_stage(number), table, self.audio, out, **options)

    def train_teachers(self, table: Path, soft: Path, folder: Path) -> tuple[Path, Path]:
        '''Train every run but the last, and relabel after each; return table and soft labels for the last.'''
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
                self.train_one(number - 1, current_table, current_soft, teachers[-1])
            if not (labels / 'relabel.json').is_file():
                runs = [*teachers[-plan.teachers :], *self.teacher_runs]
                used_boxes = self.boxes if plan.method(number) == 'windows' else None
                how: dict[str, Any] = {'number': number, 'table': table, 'boxes': used_boxes, 'plan': plan}
                print(relabel(runs, self.audio, labels, **how, **runtime_options), flush=True)
            current_table = labels / 'table.csv'
            current_soft = labels / 'soft.csv'
        return current_table, current_soft

    def first_table(self, table: Path, folder: Path) -> Path:
        '''The table of the first training.

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
        files = run_files(self.recipe, forget_labels(frame, rows))
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
    frame = read_training_table(table, box_labels, recipe, group_column)
    if corrections is not None:
        frame = apply_corrections(frame, read_corrections(corrections))
    teachers = [path for run in teacher_runs or () for path in check_teacher(run, frame)]
    files = run_files(recipe, frame, boxes, soft)
    inits = expand_pattern(str(options['init']).replace('{fold}', '*')) if options.get('init') else []
    write_rounds(rounds, files | digests_text('init.json', inits) | digests_text('teachers.json', teachers))
    soft_file = rounds / 'soft.csv' if soft is None else Path(soft)
    if soft is None:
        # Soft labels of no clip, which name all classes: a relabelled table may lack some of them.
        classes = clip_labels(frame).classes if box_labels is None else box_labels.classes
        write_soft_labels(soft_file, SoftLabels((), classes, np.zeros((0, len(classes)))))
    clock = None if deadline is None else set_deadline(deadline)
    job = SelfTraining(recipe, audio, boxes, clock, train, options, teacher_runs or ())

    # Refuse now what the last training would refuse: a folder that holds a run of another recipe.
    last = recipe.at_stage(plan.iterations)
    last = with_windows(last if box_labels is None else with_bands(last, box_labels), frame)
    check_run(folder, {'recipe.json': run_files(last, frame)['recipe.json']})
    last_table, last_soft = job.train_teachers(rounds / 'folds.csv', soft_file, rounds)
    options = {'only_folds': only_folds, 'all_data': all_data}
    return job.train_one(plan.iterations, last_table, last_soft, folder, **options)


def check_teacher(run: str | Path, frame: Any) -> list[Path]:
    '''A finished run's checkpoints.'''
    stretches = stretches_of(frame)
    is_scored = is_validated(frame['fname'], stretches)
    names = np.array(row_names(frame['fname'], stretches))
    models = held_out_models(Path(run))
    for path, held in models.items():
        if {*held.names} != {*names[is_scored & (frame['fold'] == held.tagger.card.fold)]}:
            raise KitError(
                f"{path} held out other clips than this training's fold {held.tagger.card.fold}, a leak: "
                f'train both with the same folds, e.g. --table {Path(run) / "folds.csv"}.'
            )
    return [*map(Path, models)]


def digests_text(name: str, paths: Sequence[Path]) -> dict[str, str]:
    '''A text with the digests of files, by its name; nothing without files.'''
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
