'''Train one network of a run, from random weights or a trained network's, and predict its held-out clips.'''

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import file_digest, locked, read_json, text_digest, write_text
from kit.core.runtime import Runtime
from kit.infer.predictor import Predictor, WindowLogits
from kit.labels.bootstrap import format_metric
from kit.labels.calibration import Calibration
from kit.labels.metrics import compute_metric
from kit.labels.oof_predictions import OofPredictions
from kit.labels.table import known_prevalences
from kit.models.checkpoint import content_digest, load_archive, load_tagger, open_checkpoint, read_content, save_tagger
from kit.models.families import build_network
from kit.models.network import Head, meta_device
from kit.models.tagger import Tagger, TaggerCard, build_tagger, fill_network, find_state, input_shape, strip_prefixes
from kit.train.dataset import Dataset
from kit.train.held_out import HeldOut, split_rows
from kit.train.oof import fill_with_priors, finite_outputs, score_held_out
from kit.train.recipe import Recipe
from kit.train.trainer import Trainer, network_seed


@dataclass(frozen=True)
class InitModel:
    '''The tensors that a network starts from. Classes and held-out digest are known of a checkpoint only.'''

    path: Path
    tensors: Mapping[str, Tensor]
    digest: str
    classes: tuple[str, ...] = ()
    held_out: str = ''


def read_init(path: Path) -> InitModel:
    '''Read a checkpoint, or a file with a state dict.'''
    if not path.is_file():
        raise KitError(f'no file {path} for --init: name a checkpoint or a file with a state dict.')
    content = load_archive(path)
    if isinstance(content, dict) and {'format', 'card'} <= content.keys():
        checkpoint = open_checkpoint(path, read_content(path, content))
        card = checkpoint.card
        # Not the file's digest: `oof` writes calibration and score into the card.
        digest = content_digest(json.dumps(card.classes), checkpoint.tensors)
        return InitModel(path, checkpoint.tensors, digest, card.classes, card.held_out)
    return InitModel(path, strip_prefixes(find_state(str(path), content)), file_digest(path))


def read_inits(
    pattern: str | Path | None, trained_folds: Sequence[int | None], folds: Iterable[int]
) -> dict[int | None, InitModel]:
    '''Read the file that each network starts from, by its fold; {} without a pattern.

    One file is that of all `folds` of the table, also of those that a later call trains.
    '''
    if pattern is None:
        return {}
    name = str(pattern)
    if '{fold}' not in name:
        selected = trained_folds if None in trained_folds else sorted({*folds})
        return dict.fromkeys(selected, read_init(Path(name)))
    if None in trained_folds:
        raise KitError(f'a model of all clips has no fold for {name}: name one file, e.g. --init pre/all.pt.')
    return {fold: read_init(Path(name.replace('{fold}', str(fold)))) for fold in trained_folds}


def init_files(folder: Path, inits: Mapping[int | None, InitModel], has_run: bool) -> dict[str, str]:
    '''The text of init.json: the digest of what each network of a run starts from.'''
    path = folder / 'init.json'
    record = read_json(path) if has_run else {}
    digests = {'all' if fold is None else f'fold_{fold}': init.digest for fold, init in inits.items()}
    changed = [name for name, digest in digests.items() if record.get(name, digest) != digest]
    problem = f'{", ".join(changed[:4])} started from other tensors' if changed else ''
    # init.json is written before recipe.json: a run with the second only started from random weights.
    has_files = path.is_file() or (folder / 'recipe.json').is_file()
    if has_run and has_files and bool(record) != bool(digests):
        problem = f'its networks started from {"an --init" if record else "random weights"}'
    if problem:
        raise KitError(f'{folder} belongs to another run ({problem}): choose another --out, or the same --init.')
    if not digests and not path.is_file():
        return {}
    return {'init.json': json.dumps(record | digests, indent=1) + '\n'}


def held_out_digest(data: Dataset, fold: int | None) -> str:
    '''Hash the names of a fold's held-out clips, whatever their order.'''
    names = data.row_names
    return text_digest(*sorted(names[row] for row in data.held_out(fold)))


def output_layers(network: nn.Module) -> list[str]:
    '''The names of the tensors with a row for each class.'''
    prefixes = []
    for name, module in network.named_modules():
        if isinstance(module, Head):
            layers = module.classifier
            last = f'{len(layers) - 1}.' if isinstance(layers, nn.Sequential) else ''
            prefixes.append(f'{name}.classifier.{last}')
    return [name for name in network.state_dict() if name.startswith(tuple(prefixes))]


def fitting_tensors(init: InitModel, network: nn.Module, classes: Sequence[str]) -> dict[str, Tensor]:
    '''The tensors that fit a network by name and shape. Output layers follow `classes`, or are left out for others.'''
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    fitting = {name: tensor for name, tensor in init.tensors.items() if wanted.get(name) == tensor.shape}
    if init.classes and init.classes != tuple(classes):
        for name in output_layers(network):
            tensor = fitting.pop(name, None)
            if tensor is not None and {*init.classes} == {*classes}:
                fitting[name] = tensor[[init.classes.index(label) for label in classes]]
    return fitting


def fill_from(init: InitModel, tagger: Tagger) -> None:
    '''Load the tensors that fit into a tagger's network.'''
    tensors = tagger.network.state_dict() | fitting_tensors(init, tagger.network, tagger.card.classes)
    fill_network(tagger.network, tensors, f'{init.path}: ')


def check_init(recipe: Recipe, data: Dataset, inits: Mapping[int | None, InitModel]) -> None:
    '''Print how much of the networks the files fill, and whether scores are honest.'''
    with meta_device():
        network = build_network(recipe.network, input_shape(recipe.frontend), len(data.classes))
    notes: dict[str, InitModel] = {}
    for init in inits.values():
        notes.setdefault(coverage(init, network, data.classes), init)
    for note, init in notes.items():
        print(f'note: init: {init.path} fills {note}.', flush=True)
    check_held_out(data, inits)


def coverage(init: InitModel, network: nn.Module, classes: Sequence[str]) -> str:
    '''Say which tensors of a network a file fills.

    Errors: KitError for a file that fills less than half of the weights, or none of the backbone
    '''
    fitting = fitting_tensors(init, network, classes)
    # Old files lack num_batches_tracked, which nothing reads.
    names = [name for name in network.state_dict() if not name.endswith('num_batches_tracked')]
    new = [name for name in names if name not in fitting]
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    share = sum(sizes[name] for name in sizes if name in fitting) / sum(sizes.values())
    if share < 0.5 or not any(name.startswith('backbone.') for name in sizes if name in fitting):
        unused = {name: tensor for name, tensor in init.tensors.items() if name not in fitting}
        missing = {name: tensor for name, tensor in network.state_dict().items() if name in new}
        raise KitError(
            f"{init.path} fills {share:.0%} of the network's weights: it has {shapes_of(unused)}, the network "
            f"wants {shapes_of(missing)}. Set the network's settings to those it was trained with; a file of "
            'timm belongs in network.weights.'
        )
    note = f"{len(names) - len(new)} of the network's {len(names)} tensors"
    if new:
        note += f'; new: {", ".join(new[:4])}' + (', ...' if len(new) > 4 else '')
    elif not init.classes:
        note += '; it names no classes: the output layer is used as it is'
    elif init.classes != tuple(classes):
        note += "; the output layer's rows follow the order of the classes here"
    return note


def shapes_of(tensors: Mapping[str, Tensor]) -> str:
    '''Name the first tensors, with their shapes.'''
    shapes = [f'{name[:80]} {tuple(tensor.shape)}' for name, tensor in tensors.items()]
    return ', '.join(shapes[:3]) or 'nothing else'


def check_held_out(data: Dataset, inits: Mapping[int | None, InitModel]) -> None:
    '''Print a warning where a network starts from a model that trained on its held-out clips, or may have.

    A model of exactly the same held-out clips cannot have. One of another fold's held-out clips has.
    '''
    folds = [fold for fold in {*data.folds.tolist()} if fold >= 0 and len(data.held_out(fold))]
    digests = {fold: held_out_digest(data, fold) for fold in folds}
    others = {fold: init for fold, init in inits.items() if fold is not None and init.held_out != digests[fold]}
    leaking = [str(fold) for fold, init in others.items() if init.held_out in digests.values()]
    unknown = [str(init.path) for init in others.values() if init.held_out not in digests.values()]
    if leaking:
        leak = f'fold {", ".join(leaking)} starts from a model that trained on its held-out clips, so scores are'
        print(f"WARNING: init: {leak} too high. Give each its own: --init 'pre/fold_{{fold}}.pt'.", flush=True)
    if unknown:
        condition = f'the model of {unknown[0]} never trained on clips of this table'
        print(f'note: init: the out-of-fold scores are honest only if {condition}.', flush=True)


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
        outputs = finite_outputs(predict_dataset(predictor, clips))
        probs.append(fill_with_priors(tagger, predictor.inference, outputs, len(clips)))
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
