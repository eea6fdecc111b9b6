'''Train a run: a checkpoint for each fold, and out-of-fold predictions.'''

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.clock import Deadline, divide_time, progress_bar, set_deadline
from kit.core.errors import KitError, choose
from kit.core.files import file_digest, locked, write_text
from kit.core.ranks import gather, take_share
from kit.core.runtime import Runtime, start_runtime
from kit.labels.boxes import Boxes, box_table, class_bands_hz, read_boxes
from kit.labels.folds import check_no_leak, make_folds, note_similar_classes
from kit.labels.metrics import METRICS, compute_metric
from kit.labels.oof_predictions import OofPredictions
from kit.labels.soft import read_soft_labels
from kit.labels.table import is_validated, read_clip_table, stretches_of
from kit.train.dataset import TEST_FOLD, Dataset, load_dataset, source_numbers
from kit.train.fold_training import (
    EpochLogger,
    InitModel,
    check_init,
    init_files,
    read_inits,
    score_test_clips,
    train_fold,
)
from kit.train.oof import join_folds, write_oof
from kit.train.recipe import CLASS_LOSSES, Recipe, check_recipe


@dataclass(frozen=True)
class Run:
    '''A trained run: its folder, its out-of-fold predictions, or None after training on all clips, its test's score.'''

    folder: Path
    recipe: Recipe
    oof: OofPredictions | None
    test: str = ''

    def __str__(self) -> str:
        lines = [f'{self.folder}: {self.recipe.name}', str(self.oof or 'one model of all clips: all.pt'), self.test]
        return '\n'.join(filter(None, lines))

    __repr__ = __str__


def train_run(
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
    backgrounds: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    init: str | Path | None = None,
    memory_gb: float | None = None,
    logger: EpochLogger | None = None,
) -> Run:
    '''Train a tagger for each fold, and predict every clip by a tagger that was not trained on it.

    The same call on the same folder continues where the last one stopped. help(train_by_name) explains the options.
    Without a column `fold` in the table, folds are stratified; fold -1 is never held out, and fold -2 is a test, which
    no network is trained on. With boxes the table is `recording_id,fold`, or None. `logger` is called after each epoch
    with its row of history.csv, as a dict; the score is NaN without a validation. For TensorBoard:

        def logger(row):
            for name in ("loss", "lr", "score"):
                writer.add_scalar(f"{name}/fold {row['fold']}", row[name], row["epoch"])

    Errors: KitError for inputs that cannot be read, trained on or scored, and for a folder with another run
    '''
    options = dict(locals())  # the arguments, as there is nothing else yet
    check_recipe(recipe)
    if all_data and only_folds is not None:
        raise KitError('only_folds has no effect on a training on all data: leave one of them out.')
    if all_data and recipe.patience:
        print('note: training on all data validates nothing: patience has no effect.', flush=True)
    runtime = start_runtime(device, threads, progress)
    clock = Deadline() if deadline is None else set_deadline(deadline)

    box_labels = read_box_files(boxes)
    if box_labels is not None:
        recipe = with_bands(recipe, box_labels)
    frame = read_training_table(table, box_labels, recipe, group_column)
    given_mode = recipe.inference.mode
    recipe = with_windows(recipe, frame)
    if recipe.inference.mode != given_mode:
        print(
            f'note: rows are stretches, so inference.mode=windows, window_s={recipe.inference.window_s:g}', flush=True
        )
    soft_labels = None if soft is None else read_soft_labels(soft)
    folds = np.asarray(frame['fold'])
    trained_folds: list[int | None] = [None] if all_data else [*select_folds(folds, only_folds)]

    folder = Path(out)
    files = run_files(recipe, frame, boxes, soft)
    has_run = check_run(folder, files)
    if recipe.pretrain:
        init = pretrain_networks(options, frame, clock)
    inits = read_inits(init, trained_folds, folds[folds >= 0].tolist())
    files = init_files(folder, inits, has_run) | files  # init.json is written first
    if (folder / 'state').is_dir():
        with locked(folder / 'state', folder):  # refuses a second process before it decodes anything
            pass
    data = load_dataset(recipe, frame, Path(audio), runtime, box_labels, soft_labels, backgrounds, memory_gb)
    check_labels(recipe, data)
    check_folds(recipe.metric, data, trained_folds)
    if inits:
        check_init(recipe, data, {fold: inits[fold] for fold in trained_folds})
    with locked(folder / 'state', folder):
        gather(None)  # the folder is locked for all
        # Written only now, so that a call with a mistake leaves no folder that stands in the way of the right one.
        for name, text in files.items():
            write_text(folder / name, text)
        oof = train_networks(recipe, data, trained_folds, folder, runtime, clock, inits, logger)
        if oof is not None:
            write_oof(folder, oof)
    test = data.select(data.held_out(TEST_FOLD))
    paths = [folder / 'all.pt'] if all_data else sorted(folder.glob('fold_*.pt'))
    return Run(folder, recipe, oof, score_test_clips(test, paths, recipe.metric, runtime) if len(test) else '')


def pretrain_networks(options: dict[str, Any], frame: Any, clock: Deadline) -> Path | None:
    '''Train the networks that a run starts from, in its folder `pretrained`; returns the pattern of their files.

    `options` are those of train_run. The time to a deadline is shared by epochs. Without a clip to train on there are
    no networks, which a note tells.
    '''
    recipe: Recipe = options['recipe']
    if options['init'] is not None:
        raise KitError(f'init and pretrain ({recipe.pretrain}) both start the networks: use --set pretrain= for init.')
    first = recipe.at_pretraining()
    sources = source_numbers(np.asarray(frame.get('source', [''] * len(frame)), str), first)
    shares = [source['share'] for source in first.sources.values()]
    if shares and all(shares[number] == 0 for number in sources):
        print(f'note: the table has no clips for the pretraining ({recipe.pretrain}): left out.', flush=True)
        return None
    deadline = divide_time(clock, 1 + recipe.epochs / first.epochs)
    folder = Path(options['out']) / 'pretrained'
    train_run(**options | {'recipe': first, 'out': folder, 'deadline': deadline})
    return folder / ('all.pt' if options['all_data'] else 'fold_{fold}.pt')


def train_networks(
    recipe: Recipe,
    data: Dataset,
    folds: Sequence[int | None],
    folder: Path,
    runtime: Runtime,
    clock: Deadline,
    inits: Mapping[int | None, InitModel],
    logger: EpochLogger | None,
) -> OofPredictions | None:
    '''Train this process's share of the networks, and join the predictions of all; None without held-out clips.'''
    parts: list[tuple[int, np.ndarray, dict[str, Any]]] = []
    all_networks = [(fold, replica) for fold in folds for replica in range(recipe.seeds)]
    networks = take_share([*enumerate(all_networks)])
    with progress_bar(len(networks) * recipe.epochs, 'train', 'epochs', runtime.progress) as bar:
        for done, (number, (fold, replica)) in enumerate(networks):
            # Each network gets an equal share of the time that is left.
            share_s = clock.left_s() / (len(networks) - done)
            until = Deadline(clock.now() + share_s, clock.now)
            predictions = train_fold(recipe, data, fold, replica, folder, runtime, bar, until, inits.get(fold), logger)
            if predictions is not None:
                parts.append((number, data.held_out(fold), vars(predictions)))
    all_parts = sorted(chain.from_iterable(gather(parts)), key=lambda part: part[0])
    return join_folds([(rows, OofPredictions(**part)) for _, rows, part in all_parts]) if all_parts else None


def read_box_files(boxes: Sequence[str | Path] | None) -> Boxes | None:
    '''Read the two CSVs of true and of false boxes, if given.'''
    if not boxes:
        return None
    if len(boxes) != 2:
        raise KitError(f'boxes wants two CSVs, of true and of false ones, got {len(boxes)}.')
    return read_boxes(boxes[0], boxes[1])


def read_training_table(table: str | Path | None, boxes: Boxes | None, recipe: Recipe, group_column: str | None) -> Any:
    '''Read the clip table, or make it from boxes and the CSV of their folds, and add folds and groups.'''
    if boxes is not None:
        frame = box_table(boxes, table)
    elif table is not None:
        frame = read_clip_table(table)
    else:
        raise KitError('train wants a table of clips, or boxes: --table CSV, or --boxes TRUE FALSE.')
    folds = choose_folds(frame, recipe, group_column)
    if group_column is not None:  # intervals of scores resample its clips together
        frame = frame.assign(group=frame[group_column])
    return frame.assign(fold=folds)


def with_bands(recipe: Recipe, boxes: Boxes) -> Recipe:
    '''Set the classes' frequency bands of a freq-crop recipe from their boxes. Other recipes stay as they are.'''
    if recipe.network['family'] != 'freq-crop':
        return recipe
    nyquist_hz = recipe.frontend.sample_rate / 2
    bands_hz = class_bands_hz(boxes).clip(max=nyquist_hz).tolist()
    if recipe.network['form'] == 'pooled':
        return replace(recipe, network={**recipe.network, 'bands_hz': bands_hz})
    return replace(recipe, frontend=replace(recipe.frontend, bands_hz=bands_hz))


def with_windows(recipe: Recipe, frame: Any) -> Recipe:
    '''Let a recipe that predicts whole clips predict windows as long as the scored stretches, as a submission does.'''
    stretches = stretches_of(frame)
    is_scored = is_validated(frame['fname'], stretches) & np.isfinite(stretches[:, 1])
    if recipe.inference.mode != 'full' or not is_scored.any():
        return recipe
    lengths, counts = np.unique(np.diff(stretches[is_scored]).round(6), return_counts=True)
    window_s = float(lengths[counts.argmax()])
    return replace(recipe, inference=replace(recipe.inference, mode='windows', window_s=window_s, hop_s=window_s))


def choose_folds(frame: Any, recipe: Recipe, group_column: str | None) -> np.ndarray:
    '''The folds in the table, or new stratified ones. Shape: -> (n,)

    Errors: KitError for a missing group column, and for a clip or a group in several folds of the table
    '''
    if 'fold' not in frame:
        folds = make_folds(frame, recipe.n_folds, recipe.seed, group_column)
        always = int((folds < 0).sum())
        if always:
            what = 'are in every training and never validated: their groups have the only clips of a class, or no label'
            print(f'note: {always} of {len(folds)} rows {what}', flush=True)
        return folds
    folds = np.asarray(frame['fold'])
    n_folds = len(np.unique(folds[folds >= 0]))
    if n_folds != recipe.n_folds:
        print(f'note: the table has {n_folds} folds; n_folds={recipe.n_folds} is not used.', flush=True)
    if 'begin_s' in frame:
        check_no_leak(folds, list(frame['fname']))
    if group_column is not None:
        choose('column', group_column, frame)
        check_no_leak(folds, list(frame[group_column]))
    return folds


def select_folds(folds: np.ndarray, only_folds: Sequence[int] | None) -> list[int]:
    '''The folds to train, sorted: all of the table's, or those asked for.'''
    in_table = sorted({fold for fold in folds.tolist() if fold >= 0})
    selected = in_table if only_folds is None else sorted(set(only_folds))
    if not selected or not set(selected) <= set(in_table):
        raise KitError(f'folds {selected} were asked for, the table has {in_table}.')
    return selected


def check_labels(recipe: Recipe, data: Dataset) -> None:
    '''Raise KitError for labels that the losses cannot use.'''
    note_similar_classes(data.classes)
    is_empty = (data.targets == 0).all(axis=1)
    if is_empty.any():
        print(f'note: {is_empty.sum()} of {len(data)} clips have no label: all classes are false there.', flush=True)
    for name in data.classes:
        words = name.split()
        if any(mark in name for mark in ';|') or (len(words) > 1 and {*words} <= {*data.classes}):
            print(f'note: {name!r} is one class: names are separated by commas alone.', flush=True)
    if not (data.targets == 0).any():
        classes = ', '.join(data.classes[:5])
        raise KitError(f'all known labels are true ({classes}): add clips without them, or a column false_labels.')
    soft = data.soft_labels
    if recipe.distill_weight and soft is not None and soft.names and not soft.times:
        cure = 'self_training.methods=["windows"], or distill_weight=0'
        raise KitError(f'distill_weight wants soft labels of windows: {cure}.')
    if len(data.classes) == 1:
        only = f'{data.classes[0]!r} is the only one'
        if recipe.loss in CLASS_LOSSES:
            raise KitError(f'loss={recipe.loss} ranks classes, and {only}: use --set loss=bce.')
        if METRICS[recipe.metric].clip_sums and recipe.metric != 'micro_f1':
            print(f'WARNING: {recipe.metric} ranks classes, and {only}: use --set metric=macro_auc.', flush=True)


def check_folds(metric: str, data: Dataset, folds: Sequence[int | None]) -> None:
    '''Raise KitError for a fold with less than two training clips, or without the metric's labels.'''
    for fold in [*folds, *({TEST_FOLD} & {*data.folds.tolist()})]:
        n_clips = len(data.train_split(fold))
        if n_clips < 2:
            cure = 'leave out the column fold, or train on all data (--all-data)'
            raise KitError(f'fold {fold} has {n_clips} training clips, and needs 2: {cure}.')
        rows = [row for row in data.held_out(fold) if row in data.spectrograms]
        if fold is not None:
            truth = data.truth[rows]
            try:
                compute_metric(metric, truth, np.zeros_like(truth))
            except KitError as error:
                raise KitError(f'fold {fold} cannot be scored on its clips that can be decoded: {error}') from error


def run_files(
    recipe: Recipe, table: Any, boxes: Sequence[str | Path] | None = None, soft: str | Path | None = None
) -> dict[str, str]:
    '''The texts that identify a run: recipe.json, folds.csv, and hashes of `boxes` and `soft`.'''
    if 'end_s' in table:
        table = table.copy()
        # A whole clip has empty cells, as in the table that was read.
        times = table[['begin_s', 'end_s']].astype(object)
        table[['begin_s', 'end_s']] = times.where(table['end_s'] < math.inf, '')
    files = {
        'recipe.json': json.dumps(recipe.to_dict(), indent=1) + '\n',
        'folds.csv': table.to_csv(index=False, lineterminator='\n'),
    }
    label_files = [path for path in (*(boxes or ()), soft) if path is not None]
    if label_files:
        digests = {f'{i} {Path(path).name}': file_digest(Path(path)) for i, path in enumerate(label_files)}
        files['labels.json'] = json.dumps(digests, indent=1) + '\n'
    return files


def check_run(folder: Path, files: Mapping[str, str]) -> bool:
    '''Whether a folder holds this run already.'''
    if not (folder / 'state').is_dir() and not any(folder.glob('fold_*.pt')):
        return False
    for name, text in files.items():
        path = folder / name
        old_text = path.read_text(encoding='utf-8') if path.is_file() else text
        if old_text == text:
            continue
        differences = "its clips or folds differ from the table's"
        if path.suffix == '.json':
            old = flat_settings(json.loads(old_text))
            new = flat_settings(json.loads(text))
            if old == new:
                continue
            changed = [key for key, value in new.items() if old.get(key) != value]
            differences = ', '.join(f'{key} is {old.get(key)!r} there and {new[key]!r} here' for key in changed[:4])
        raise KitError(f'{path} belongs to another run ({differences}): choose another --out.')
    return True


def flat_settings(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    '''Flatten nested settings to dotted names.'''
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat
