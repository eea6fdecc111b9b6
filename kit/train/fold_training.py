'''Train one network of a run: its checkpoint, its held-out predictions, and its rows of the history.'''

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.core.clock import Deadline
from kit.core.files import locked, write_text
from kit.core.runtime import Runtime
from kit.infer.ensemble import clip_probabilities
from kit.infer.predictor import Predictor, WindowLogits
from kit.labels.bootstrap import format_metric
from kit.labels.calibration import Calibration
from kit.labels.metrics import compute_metric
from kit.labels.oof_predictions import OofPredictions
from kit.labels.table import known_prevalences
from kit.models.checkpoint import load_tagger, open_checkpoint, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.train.dataset import Dataset
from kit.train.held_out import HeldOut, split_rows
from kit.train.oof import score_held_out
from kit.train.recipe import Recipe
from kit.train.trainer import Trainer, network_seed
from kit.train.warm_start import InitModel, fill_from, held_out_digest

EpochLogger = Callable[[dict[str, Any]], object]


def new_tagger(recipe: Recipe, data: Dataset, fold: int | None, start: bool = True, replica: int = 0) -> Tagger:
    '''Build the tagger of a fold, with random weights from the run's seed; `start` as in build_network.'''
    card = TaggerCard(
        classes=data.classes,
        prevalences=tuple(known_prevalences(data.truth[data.is_trained(fold)])),
        frontend=recipe.frontend,
        inference=recipe.inference,
        network=recipe.network,
        output=recipe.output,
        fold=fold,
        held_out=held_out_digest(data, fold),
        seed=recipe.seed + replica,
        recipe=recipe.to_dict(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network_seed(recipe, fold, replica, 2**20))  # 2**20 is above every epoch
        return build_tagger(card, start)


def validate_fold(trainer: Trainer, predictor: Predictor, data: Dataset) -> OofPredictions:
    '''Predict and score a fold's held-out clips with the network's weights as they are.

    Writes output, calibration and score into the tagger's card.
    '''
    tagger = trainer.tagger
    rows = data.held_out(trainer.fold)
    clips = data.select(rows)
    tagger.card = replace(tagger.card, output=trainer.recipe.output, calibration=None)
    held = HeldOut(tagger, rows, clips.names, clips.stretches, clips.truth)
    return score_held_out(held, predictor.inference, predict_dataset(predictor, clips), clips.failures)


def predict_dataset(predictor: Predictor, clips: Dataset) -> dict[int, WindowLogits]:
    '''Predict the logits of a dataset's rows, from its spectrograms.'''
    recordings = {clips.names[row]: clips.recordings[clips.names[row]] for row in clips.spectrograms}
    outputs = predictor.predict(list(recordings.values()))
    of_clips = {name: output for name, output in zip(recordings, outputs, strict=True) if output is not None}
    return split_rows(of_clips, clips.names, clips.stretches, predictor.tagger.card.frontend.frames_per_s)


def score_test_clips(clips: Dataset, paths: Sequence[Path], metric: str, runtime: Runtime) -> str:
    '''Describe the score of test clips, predicted by the mean of a run's networks.'''
    probs = []
    for path in paths:
        tagger = load_tagger(path)
        predictor = Predictor(tagger, runtime.device, fuse=True)
        of_model = np.tile(np.array(tagger.card.prevalences), (len(clips), 1))
        for row, output in predict_dataset(predictor, clips).items():
            if np.isfinite(output.logits).all():
                of_model[row] = clip_probabilities(tagger, predictor.inference, output.logits)
        probs.append(of_model)
    score = format_metric(compute_metric, metric, clips.truth, np.mean(probs, axis=0))
    return f'test: {metric} {score} on {len(clips)} clips that no network was trained on, mean of {len(paths)} networks'


def train_fold(
    recipe: Recipe,
    data: Dataset,
    fold: int | None,
    replica: int,
    folder: Path,
    runtime: Runtime,
    bar: Any,
    deadline: Deadline,
    init: InitModel | None = None,
    logger: EpochLogger | None = None,
) -> OofPredictions | None:
    '''Train one network of a fold, or continue it; write its checkpoint, and predict its held-out clips.

    Fold None is trained on all clips. It keeps the last weights, has no predictions, and gets the mean
    calibration of the folds in the same folder.
    '''
    start = time.perf_counter()
    name = 'all' if fold is None else f'fold_{fold}'
    name += f'_seed_{replica}' if replica else ''
    state_path = folder / 'state' / f'{name}.resume.pt'
    tagger = new_tagger(recipe, data, fold, not state_path.is_file(), replica)
    if init is not None:
        fill_from(init, tagger)
    predictor = Predictor(tagger, runtime.device)
    trainer = Trainer(recipe, tagger, data.train_split(fold), fold, runtime.device, replica)
    predictions: dict[int, OofPredictions] = {}  # those of the last validation, by its epoch

    def validate() -> float:
        if fold is None:
            return math.nan
        predictions.clear()
        predictions[trainer.epoch] = validate_fold(trainer, predictor, data)
        return predictions[trainer.epoch].score

    trainer.restore(state_path)
    if trainer.epoch:
        bar.update(trainer.epoch)
        bar.write(f'note: {trainer.name} was trained already up to epoch {trainer.epoch} of {recipe.epochs}.')
    for row in trainer.train(state_path, validate, deadline):
        history = history_rows(trainer)
        write_history(folder / 'history.csv', history)
        if logger is not None:
            logger(history[-1])
        scores = [epoch['score'] for epoch in history if math.isfinite(epoch['score'])]
        score = f'{recipe.metric} {scores[-1]:.4f}, ' if scores else ''
        bar.update(1)
        bar.set_postfix_str(f'{trainer.name}, epoch {row["epoch"]:.0f}, {score}loss {row["loss"]:.4f}')
    if trainer.epoch < recipe.epochs:
        bar.total -= recipe.epochs - trainer.epoch
        where = f'{trainer.name} after epoch {trainer.epoch} of {recipe.epochs}'
        cause = f'{recipe.patience} validations without a better {recipe.metric}'
        bar.write(f'note: {cause if trainer.is_stalled else "the deadline"} cut {where}.')
    write_history(folder / 'history.csv', history_rows(trainer))

    score = ''
    kept_epoch = trainer.kept_epoch
    tagger.card = replace(tagger.card, train_prevalences=tuple(trainer.prevalences))
    if fold is None:
        calibration = mean_calibration(folder, recipe.output)
        tagger.card = replace(tagger.card, output=recipe.output, calibration=calibration)
    else:
        if kept_epoch not in predictions:
            predictions[kept_epoch] = validate_fold(trainer, predictor, data)
        score = f'{recipe.metric} {predictions[kept_epoch].score:.4f}, '
    save_tagger(folder / f'{name}.pt', tagger)
    if runtime.progress:
        bar.write(f'{trainer.name}: {score}{(time.perf_counter() - start) / 60:.1f} min')
    return predictions.get(kept_epoch)


def mean_calibration(folder: Path, output: str) -> Calibration | None:
    '''The mean calibration of a run's folds; None, with a note, if ranking scores have none.'''
    if output == 'probability':
        return None
    cards = [open_checkpoint(path).card for path in sorted(folder.glob('fold_*.pt'))]
    pairs = [(card.calibration.scale, card.calibration.offset) for card in cards if card.calibration is not None]
    if not pairs:
        print('note: a rank score without folds in its folder has no calibration: only --blend rank takes it.')
        return None
    return Calibration(*np.mean(pairs, axis=0).tolist())


def history_rows(trainer: Trainer) -> list[dict[str, Any]]:
    '''A network's row of the history for each epoch; the score is NaN without a validation.'''
    network = {'fold': 'all' if trainer.fold is None else trainer.fold, 'seed': trainer.replica}
    epochs = zip(trainer.history, trainer.seconds, strict=True)
    return [{**network, **row, 'score': row.get('score', math.nan), 'seconds': seconds} for row, seconds in epochs]


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    '''Write the rows of a network. The rows of other networks stay.'''
    network = '{fold},{seed},'.format(**rows[0])
    with locked(path.parent / 'state' / 'history', path, wait=True):  # other processes train other networks
        lines = path.read_text(encoding='utf-8').splitlines()[1:] if path.is_file() else []
        lines = [line for line in lines if not line.startswith(network)]
        for row in rows:
            line = '{fold},{seed},{epoch},{loss:.6g},{lr:.6g},{score},{seconds:.3f}'.format(**row)
            lines.append(line.replace('nan', ''))
        # By fold, then seed, as numbers, and "all" last: a longer number is greater, and "all" is longer than a fold.
        lines.sort(key=lambda line: [(len(cell), cell) for cell in line.split(',')[:2]])
        write_text(path, '\n'.join(['fold,seed,epoch,loss,lr,score,seconds', *lines, '']))
