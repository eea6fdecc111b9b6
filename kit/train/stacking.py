'''Train a stack: a second-level model on the out-of-fold predictions of several runs.'''

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.core.files import write_json, write_text
from kit.infer.stack import STACKERS, LogisticStacker, Stack, StackCard, StackerConfig, WindowProbs, clip_image
from kit.labels.bootstrap import Interval, bootstrap_difference
from kit.labels.metrics import compute_metric
from kit.labels.oof_predictions import OofPredictions, check_same_folds, load_oof
from kit.labels.soft import SoftLabels
from kit.models.checkpoint import FORMAT, checkpoint_content, save_archive, tensors_of
from kit.models.tagger import Tagger
from kit.train.held_out import held_out_models
from kit.train.losses import average_loss, bce_loss
from kit.train.oof import write_oof
from kit.train.self_training import predict_pseudo_labels
from kit.train.trainer import mixed_seed


@dataclass(frozen=True)
class StackConfig(Config):
    '''Which second-level model is trained, and how.'''

    kind: str = setting('class-mixer', 'second-level model', choices=tuple(STACKERS))
    network: StackerConfig = setting(StackerConfig(), 'settings of that model')
    epochs: int = setting(30, 'passes over the rows of the other folds (not for logistic)', low=1)
    batch_size: int = setting(32, 'least rows per step (not for logistic)', low=2)
    lr: float = setting(1e-3, 'highest learning rate of one cycle (not for logistic)', low=0)
    columns: int = setting(40, 'least windows of an image, and most in training (image-stacker)', low=1)
    seed: int = setting(0, 'seed of weights, order of rows, and dropout', low=0)


@dataclass(frozen=True)
class StackResult:
    '''A stack's folder, and the out-of-fold scores of the stack, its runs, and their plain mean.'''

    folder: Path
    kind: str
    metric: str
    clips: int
    runs: dict[str, float]
    mean: float
    score: float
    gain: Interval

    def __str__(self) -> str:
        scores = {**self.runs, 'plain mean of the runs': self.mean, self.kind: self.score}
        lines = [f'{self.folder / "stack.pt"}: {self.metric} out of fold on {self.clips} clips, folds cross-fitted']
        lines += [f'  {score:.4f}  {name}' for name, score in scores.items()]
        lines.append(f'gain over the plain mean: {self.gain}')
        if self.gain.value <= 0:
            lines.append("THE STACK DOES NOT BEAT THE PLAIN MEAN: submit the runs' own checkpoints instead.")
        best = max(self.runs, key=self.runs.__getitem__)
        if self.runs[best] >= max(self.mean, self.score):
            lines.append(f'{best} ALONE IS AS GOOD: submit its checkpoints.')
        return '\n'.join(lines)

    __repr__ = __str__


def stack(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    kind: str = 'class-mixer',
    audio: str | Path | None = None,
    overrides: list[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> StackResult:
    '''Train a second-level model on several runs, and write it with all their taggers as OUT/stack.pt, to submit.

    One model per fold is trained on the rows of the other folds: none predicts a row that it was trained on. But the
    predictions in those rows come from taggers that were trained on this fold's labels: the score is a little too good.
    Labels and metric are the first run's. OUT gets oof.csv and folds.csv, as a run has.

    Options:
        runs: folders of runs on the same clips and folds, each with its oof.csv
        out: the folder to write
        kind: class-mixer, logistic, gated-mlp, or image-stacker, which reads predictions of windows
        audio: the folder that holds the clips, for image-stacker
        overrides: settings as key=value, e.g. epochs=60 network.C=0.1
        seed: seed of weights, order of rows, and dropout
    '''
    config = StackConfig(kind, seed=seed).override(overrides or [])
    folder = Path(out)
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    check_folders(folders, folder)
    with torch.random.fork_rng(devices=[]):  # building a network draws weights
        oofs = [load_oof(path) for path in folders]
        pairs = list(zip(folders, oofs, strict=True))
        taggers = [load_taggers(path, oof) for path, oof in pairs]
        first = oofs[0]
        predictions = np.stack([oof.probabilities_like(first, path, folders[0]) for path, oof in pairs], axis=1)
        inputs = list(torch.from_numpy(predictions).float())
        if config.kind == 'image-stacker':
            if audio is None:
                raise KitError('an image-stacker predicts the windows of the clips: give audio.')
            if taggers[0][0].card.inference.mode == 'full':
                raise KitError(f'{folders[0]} predicts whole clips: begin with a run of inference.mode=windows.')
            windows = [predict_pseudo_labels([path], audio, 0, device, threads, progress)[0] for path in folders]
            inputs = prediction_images(first, predictions, windows, config.columns)
        card = StackCard(
            kind=config.kind,
            network=config.network,
            runs=tuple(path.resolve().name for path in folders),
            run_of=tuple(run for run, of_run in enumerate(taggers) for _ in of_run),
            classes=first.classes,
            columns=config.columns if config.kind == 'image-stacker' else 0,
            metric=first.metric,
        )
        networks, probs = cross_fit(config, card, inputs, first)

    oof = replace(first, probabilities=probs)
    result = compare_with_runs(folder, config.kind, oof, dict(zip(folders, predictions.swapaxes(0, 1), strict=True)))
    write_text(folder / 'folds.csv', (folders[0] / 'folds.csv').read_text(encoding='utf-8'))
    write_oof(folder, oof)
    write_json(folder / 'stack.json', asdict(result) | {'folder': str(folder), 'settings': config.to_dict()})
    made = Stack(replace(card, oof_score=round(oof.score, 6)), networks)
    save_stack(folder / 'stack.pt', made, [tagger for of_run in taggers for tagger in of_run])
    return result


def compare_with_runs(folder: Path, kind: str, oof: OofPredictions, runs: Mapping[Path, np.ndarray]) -> StackResult:
    '''Score a stack's out-of-fold predictions beside those of its runs and their plain mean.'''
    mean = np.mean([*runs.values()], axis=0)
    score = partial(compute_metric, oof.metric, oof.truth)
    return StackResult(
        folder=folder,
        kind=kind,
        metric=oof.metric,
        clips=len(mean),
        runs={str(path): score(probs) for path, probs in runs.items()},
        mean=score(mean),
        score=oof.score,
        gain=bootstrap_difference(oof.metric, oof.truth, oof.probabilities, mean, oof.groups),
    )


def check_folders(folders: Sequence[Path], out: Path) -> None:
    '''Raise KitError unless each run is given once, none is a stack, and `out` is no run.'''
    if not folders or len({path.resolve() for path in [*folders, out]}) <= len(folders):
        raise KitError('stack wants folders of runs, each once, and another as out.')
    if (out / 'recipe.json').exists():
        raise KitError(f'{out} holds a run: choose another --out.')
    for path in folders:
        if (path / 'stack.pt').exists():
            raise KitError(f'{path} is a stack itself: give the runs that it reads.')


def load_taggers(folder: Path, oof: OofPredictions) -> list[Tagger]:
    '''Load a run's taggers.'''
    models = held_out_models(folder).values()
    if not all(model.tagger.card.is_calibrated for model in models):
        raise KitError(f'{folder} lacks its calibrations: run `oof` on it.')
    held_out = {name: model.tagger.card.fold for model in models for name in model.names}
    check_same_folds(held_out, folder, oof.fold_of_clip, folder / 'oof.csv')
    return [model.tagger for model in models]


def prediction_images(
    first: OofPredictions, predictions: np.ndarray, windows: Sequence[SoftLabels], columns: int
) -> list[Tensor]:
    '''Make each clip's prediction image. A run without its windows has one, the clip's prediction.

    Shape:  predictions (n, m, K), m runs -> n images (m, K, W_i)
    '''
    images = []
    for row, name in enumerate(first.names):
        of_clip: list[WindowProbs] = []
        for run, soft in enumerate(windows):
            centres_s = np.zeros(1)
            probs = predictions[row, [run]]
            if name in soft.rows:
                rows = soft.rows[name]
                centres_s = np.mean([times[rows] for times in soft.times], axis=0)
                probs = soft.targets[rows][:, [soft.classes.index(class_name) for class_name in first.classes]]
            of_clip.append([(centres_s, probs)])
        images.append(clip_image(of_clip, columns))
    return images


def cross_fit(
    config: StackConfig, card: StackCard, inputs: Sequence[Tensor], first: OofPredictions
) -> tuple[list[nn.Module], np.ndarray]:
    '''Train a network for each fold on the other folds' rows, and predict the fold with it.

    Shape:  n inputs (m, K) or (m, K, W_i) -> probabilities (n, K)
    '''
    folds = np.unique(first.folds).tolist()
    if len(folds) < 2:
        raise KitError('a stack wants two folds or more: train the others.')
    networks: list[nn.Module] = []
    probs = np.empty(first.truth.shape)
    for fold in folds:
        train_rows, held_out = (np.flatnonzero(mask).tolist() for mask in (first.folds != fold, first.folds == fold))
        torch.manual_seed(mixed_seed(config.seed, fold))
        # Images have a column per window of their clip, but at least card.columns.
        x = torch.stack([inputs[row][..., : card.columns or None] for row in train_rows])
        network = fit_stacker(config, card.new_network(), x, torch.from_numpy(first.truth[train_rows]))
        networks.append(network)
        probs[held_out] = Stack(card, [network]).answer([inputs[row] for row in held_out])
    return networks, probs


def fit_stacker(config: StackConfig, network: nn.Module, x: Tensor, truth: Tensor) -> nn.Module:
    '''Fit a network to rows, with torch's own generator. Shape: x (n, m, K) or (n, m, K, W), truth (n, K)'''
    if isinstance(network, LogisticStacker):
        return fit_logistic(config.network.C, network, x, truth)
    steps = max(1, len(x) // config.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), config.lr)
    total_steps = max(2, config.epochs * steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps, cycle_momentum=False)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x)).tensor_split(steps):
            optimizer.zero_grad()
            torch.autograd.backward(average_loss(bce_loss(network(x[rows]), truth[rows])))
            optimizer.step()
            schedule.step()
    return network.eval()


def fit_logistic(C: float, network: LogisticStacker, x: Tensor, truth: Tensor) -> nn.Module:
    '''Fit the logistic regression of each class to its known labels. Shape: x (n, m, K), truth (n, K)

    A class with only true or only false labels keeps the mean of the runs' logits.
    '''
    from sklearn.linear_model import LogisticRegression

    logits = network.run_logits(x).numpy()
    labels = truth.numpy()
    for k in range(labels.shape[1]):
        known = ~np.isnan(labels[:, k])
        of_class = labels[known, k]
        if len(np.unique(of_class)) > 1:
            model = LogisticRegression(C=C).fit(logits[known, :, k], of_class)
            with torch.no_grad():
                network.weight[:, k] = torch.from_numpy(model.coef_[0])
                network.bias[k] = float(model.intercept_[0])
    return network.eval()


def save_stack(path: Path, made: Stack, taggers: Sequence[Tagger]) -> None:
    '''Write a stack and all its taggers as one whole file of tensors and JSON.'''
    content = {
        'format': FORMAT,
        'card': json.dumps(made.card.to_dict()),
        'members': [checkpoint_content(tagger) for tagger in taggers],
        'networks': [tensors_of(network) for network in made.networks],
    }
    save_archive(path, content)
