"""Train a stack: a second-level model on the out-of-fold predictions of several runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.core.files import TextTable, read_table, write_json, write_text, write_whole
from kit.infer.stack import Stack, StackCard, WindowProbs, clip_image
from kit.labels.bootstrap import Interval, bootstrap_difference
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels
from kit.models.checkpoint import FORMAT, checkpoint_content, tensors_of
from kit.models.stackers import STACKERS, LogisticStacker, Stacker
from kit.models.tagger import Tagger
from kit.train.losses import average_loss, bce_loss
from kit.train.oof import HeldOut, OofPredictions, held_out_models, write_oof
from kit.train.relabel import predict_pseudo_labels
from kit.train.trainer import mixed_seed


@dataclass(frozen=True)
class StackConfig(Config):
    """Which second-level model is trained, and how."""

    kind: str = setting("class-mixer", "second-level model", choices=tuple(STACKERS))
    network: dict[str, Any] = setting({}, "settings of that model")
    epochs: int = setting(30, "passes over the rows of the other folds (not for logistic)", low=1)
    batch_size: int = setting(32, "least rows per step (not for logistic)", low=2)
    lr: float = setting(1e-3, "highest learning rate of one cycle (not for logistic)", low=0)
    columns: int = setting(
        40, "least windows of a prediction image, and most in training (image-stacker)", low=1
    )
    seed: int = setting(0, "seed of weights, order of rows, and dropout", low=0)

    def check(self) -> None:
        config: type[Config] = STACKERS[self.kind][0]
        object.__setattr__(self, "network", config.from_dict(self.network).to_dict())


@dataclass(frozen=True)
class StackResult:
    """A stack's folder, and the out-of-fold lwlrap of the stack, its runs, and their plain mean."""

    folder: Path
    kind: str
    clips: int
    runs: dict[str, float]
    mean: float
    score: float
    gain: Interval

    def __str__(self) -> str:
        scores = {**self.runs, "plain mean of the runs": self.mean, self.kind: self.score}
        path = self.folder / "stack.pt"
        lines = [f"{path}: lwlrap out of fold on {self.clips} clips, folds cross-fitted"]
        for name, score in scores.items():
            lines.append(f"  {score:.4f}  {name}")
        lines.append(f"gain over the plain mean: {self.gain}")
        if self.gain.value <= 0:
            lines.append("THE STACK DOES NOT BEAT THE PLAIN MEAN: submit the runs' own checkpoints instead.")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class StackedRun:
    """One run of a stack: its folder, its out-of-fold predictions, and its taggers with their held-out clips."""

    folder: Path
    oof: OofPredictions
    models: list[HeldOut]


def stack(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    kind: str = "class-mixer",
    audio: str | Path | None = None,
    overrides: list[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> StackResult:
    """Train a second-level model on several runs, and write it with all their taggers as OUT/stack.pt, to submit.

    One model per fold is trained on the rows of the other folds, so no row is predicted by a model that was
    trained on it. But the predictions in those rows come from taggers that were trained on this fold's labels: the
    score is a little too good. The labels are the first run's. OUT gets oof.csv and folds.csv, as a run has.

    Options:
        runs: folders of runs on the same clips and folds, each with its oof.csv
        out: the folder to write
        kind: class-mixer, logistic, gated-mlp, or image-stacker, which reads predictions of windows
        audio: the folder that holds the clips, for image-stacker
        overrides: settings as key=value, e.g. epochs=60 network.widths=[256,128]
        seed: seed of weights, order of rows, and dropout
        device: cpu or cuda, to predict windows; without it, the first that computes
        threads: threads that decode; without it, one per core
        progress: show a bar
    """
    config = StackConfig(kind, seed=seed).override(overrides or [])
    folder = Path(out)
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    check_folders(folders, folder)
    with torch.random.fork_rng(devices=[]):  # building a network draws weights
        stacked = load_runs(folders)
        first = stacked[0].oof
        predictions = np.stack([run.oof.probabilities for run in stacked], axis=1)
        columns = 0
        if config.kind == "image-stacker":
            check_image_inputs(stacked[0], audio)
            columns = config.columns
            windows = [
                predict_pseudo_labels(
                    [path], audio or "", 0, device=device, threads=threads, progress=progress
                )[0]
                for path in folders
            ]
            inputs = prediction_images(first, predictions, windows, columns)
        else:
            inputs = list(torch.from_numpy(predictions).float())
        card = new_card(config, stacked, columns)
        networks, answers = cross_fit(config, card, inputs, first)

    oof = replace(first, probabilities=answers)
    mean = predictions.mean(axis=1)
    result = StackResult(
        folder=folder,
        kind=config.kind,
        clips=len(mean),
        runs={str(run.folder): run.oof.lwlrap for run in stacked},
        mean=lwlrap(first.truth, mean),
        score=oof.lwlrap,
        gain=bootstrap_difference(lwlrap, first.truth, answers, mean),
    )
    write_text(folder / "folds.csv", (folders[0] / "folds.csv").read_text(encoding="utf-8"))
    write_oof(folder, oof)
    facts = asdict(result) | {"folder": str(folder), "settings": config.to_dict()}
    write_json(folder / "stack.json", facts)
    scored_card = replace(card, oof_score=round(oof.lwlrap, 6))
    taggers = [model.tagger for run in stacked for model in run.models]
    save_stack(folder / "stack.pt", Stack(scored_card, networks), taggers)
    return result


def check_folders(folders: Sequence[Path], out: Path) -> None:
    """Raise KitError unless each run is given once, and `out` is no run."""
    distinct = {path.resolve() for path in [*folders, out]}
    if not folders or len(distinct) < len(folders) + 1:
        raise KitError("stack wants folders of runs, each once, and another as out.")
    if (out / "recipe.json").exists():
        raise KitError(f"{out} holds a run: choose another --out.")


def check_image_inputs(first: StackedRun, audio: str | Path | None) -> None:
    """Raise KitError if no windows can be predicted for an image-stacker."""
    if audio is None:
        raise KitError("an image-stacker predicts the windows of the clips: give audio.")
    if first.models[0].tagger.card.inference.mode != "windows":
        raise KitError(f"{first.folder} predicts whole clips: begin with a run of inference.mode=windows.")


def new_card(config: StackConfig, runs: Sequence[StackedRun], columns: int) -> StackCard:
    """The card of a stack: its model, and which run each tagger belongs to."""
    run_of = [number for number, run in enumerate(runs) for _ in run.models]
    return StackCard(
        kind=config.kind,
        network=config.network,
        runs=tuple(run.folder.resolve().name for run in runs),
        run_of=tuple(run_of),
        classes=runs[0].oof.classes,
        columns=columns,
    )


def load_runs(folders: Sequence[Path]) -> list[StackedRun]:
    """Load runs, with clips and classes in the order of the first one's.

    Errors: KitError for a stack, a run without oof.csv or calibrations, and runs of other clips, folds or classes
    """
    first = load_stacked_run(folders[0])
    runs = [first]
    for folder in folders[1:]:
        run = load_stacked_run(folder)
        check_same_folds(folds_by_name(first.oof), first.folder, folds_by_name(run.oof), folder)
        check_same_classes(first.oof.classes, run.oof.classes, folder)
        runs.append(replace(run, oof=in_order_of(run.oof, first.oof)))
    return runs


def load_stacked_run(folder: Path) -> StackedRun:
    """Load a run's oof.csv and taggers."""
    if (folder / "stack.pt").exists():
        raise KitError(f"{folder} is a stack itself: give the runs that it reads.")
    models = list(held_out_models(folder).values())
    path = folder / "oof.csv"
    if not path.is_file() or not all(model.tagger.card.calibrated for model in models):
        raise KitError(f"{folder} lacks its calibrations or oof.csv: run `oof` on it.")
    table = read_table(path, ("fname", "fold"), exact=True)
    names = tuple(table.columns["fname"])
    folds = table.numbers("fold", kind=int)
    fold_of_clip = {name: model.tagger.card.fold for model in models for name in model.names}
    check_same_folds(fold_of_clip, folder, dict(zip(names, folds, strict=True)), path)
    classes = models[0].tagger.card.classes
    check_same_classes(classes, [name for name in table.columns if name not in ("fname", "fold")], folder)
    truth_of_clip = {
        name: truth for model in models for name, truth in zip(model.names, model.truth, strict=True)
    }
    oof = OofPredictions(
        names=names,
        classes=classes,
        folds=np.array(folds),
        truth=np.array([truth_of_clip[name] for name in names]),
        probabilities=probability_columns(table, classes),
        failures={},
    )
    return StackedRun(folder, oof, models)


def probability_columns(table: TextTable, classes: Sequence[str]) -> np.ndarray:
    """The columns of a table of probabilities. Shape: -> (n, K)"""
    columns = [table.numbers(name, "a probability", lambda p: 0 <= p <= 1) for name in classes]
    return np.array(columns).T


def folds_by_name(oof: OofPredictions) -> dict[str, int]:
    """The fold of each clip."""
    return dict(zip(oof.names, oof.folds.tolist(), strict=True))


def in_order_of(oof: OofPredictions, first: OofPredictions) -> OofPredictions:
    """Reorder clips and classes as those of `first`, which are the same."""
    row_of = {name: row for row, name in enumerate(oof.names)}
    column_of = {name: column for column, name in enumerate(oof.classes)}
    rows = [row_of[name] for name in first.names]
    columns = [column_of[name] for name in first.classes]
    cells = np.ix_(rows, columns)
    return replace(
        oof,
        names=first.names,
        classes=first.classes,
        folds=oof.folds[rows],
        truth=oof.truth[cells],
        probabilities=oof.probabilities[cells],
    )


def check_same_classes(first: Sequence[str], other: Sequence[str], folder: Path) -> None:
    """Raise KitError that names the first class that is not in both."""
    different = sorted(set(first) ^ set(other))
    if different:
        raise KitError(
            f"{folder} has other classes than its taggers or the first run, e.g. {different[0]!r}."
        )


def check_same_folds(
    folds: Mapping[str, Any], place: Path, other_folds: Mapping[str, Any], other_place: Path
) -> None:
    """Raise KitError that names the first clip whose fold differs between two places."""
    different = sorted(name for name in {*folds, *other_folds} if folds.get(name) != other_folds.get(name))
    if different:
        name = different[0]
        fold = f"fold {folds[name]}" if name in folds else "no fold"
        other_fold = f"fold {other_folds[name]}" if name in other_folds else "no fold"
        raise KitError(
            f"{name!r} is in {fold} of {place} and in {other_fold} of {other_place}: stack runs of one split."
        )


def prediction_images(
    first: OofPredictions, predictions: np.ndarray, windows: Sequence[SoftLabels], columns: int
) -> list[Tensor]:
    """The prediction image of each clip. A run without windows of a clip gives one, its prediction of the clip.

    Shape:  predictions (n, m, K), m runs -> n images (m, K, W_i)
    """
    images = []
    for row, name in enumerate(first.names):
        of_clip: list[WindowProbs] = []
        for run, soft in enumerate(windows):
            if name in soft.rows:
                rows = soft.rows[name]
                class_order = [soft.classes.index(class_name) for class_name in first.classes]
                centres_s = np.mean([times[rows] for times in soft.times], axis=0)
                of_clip.append([(centres_s, soft.targets[rows][:, class_order])])
            else:
                of_clip.append([(np.zeros(1), predictions[row, [run]])])
        images.append(clip_image(of_clip, columns))
    return images


def cross_fit(
    config: StackConfig, card: StackCard, inputs: Sequence[Tensor], first: OofPredictions
) -> tuple[list[Stacker], np.ndarray]:
    """Train a network for each fold on the other folds' rows, and predict the fold with it.

    Shape:  n inputs (m, K) or (m, K, W_i) -> probabilities (n, K)
    """
    folds = np.unique(first.folds).tolist()
    if len(folds) < 2:
        raise KitError("a stack wants two folds or more: train the others.")
    networks: list[Stacker] = []
    probs = np.empty(first.truth.shape)
    for fold in folds:
        train_rows = np.flatnonzero(first.folds != fold).tolist()
        held_out = np.flatnonzero(first.folds == fold).tolist()
        torch.manual_seed(mixed_seed(config.seed, fold))
        # Images have as many columns as their clip has windows, but at least card.columns.
        x = torch.stack([inputs[row][..., : card.columns or None] for row in train_rows])
        truth = torch.from_numpy(first.truth[train_rows])
        network = fit_stacker(config, card.new_network(), x, truth)
        networks.append(network)
        probs[held_out] = Stack(card, [network]).answer([inputs[row] for row in held_out])
    return networks, probs


def fit_stacker(config: StackConfig, network: Stacker, x: Tensor, truth: Tensor) -> Stacker:
    """Fit a network to rows, with torch's own generator. Shape: x (n, m, K) or (n, m, K, W), truth (n, K)"""
    if isinstance(network, LogisticStacker):
        return fit_logistic(network, x, truth)
    steps = max(1, len(x) // config.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), config.lr)
    total_steps = max(2, config.epochs * steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps, cycle_momentum=False)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x)).tensor_split(steps):
            optimizer.zero_grad()
            loss = average_loss(bce_loss(network(x[rows]), truth[rows]))
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


def fit_logistic(network: LogisticStacker, x: Tensor, truth: Tensor) -> Stacker:
    """Fit the logistic regression of each class to its known labels. Shape: x (n, m, K), truth (n, K)

    A class that has only true or only false labels keeps the mean of the runs' logits.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise KitError("kind=logistic needs scikit-learn: pip install scikit-learn.") from error

    logits = network.run_logits(x).numpy()
    labels = truth.numpy()
    for k in range(network.classes):
        known = ~np.isnan(labels[:, k])
        of_class = labels[known, k]
        if len(np.unique(of_class)) < 2:
            continue
        model = LogisticRegression(C=network.settings.C).fit(logits[known, :, k], of_class)
        with torch.no_grad():
            network.weight[:, k] = torch.from_numpy(model.coef_[0])
            network.bias[k] = float(model.intercept_[0])
    return network.eval()


def save_stack(path: Path, made: Stack, taggers: Sequence[Tagger]) -> None:
    """Write a stack and all its taggers as one whole file of tensors and JSON."""
    content = {
        "format": FORMAT,
        "card": json.dumps(made.card.to_dict()),
        "members": [checkpoint_content(tagger) for tagger in taggers],
        "networks": [tensors_of(network) for network in made.networks],
    }
    write_whole(path, lambda handle: torch.save(content, handle))
