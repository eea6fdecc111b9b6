"""Train a second level on several runs."""

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
from kit.core.files import read_table, write_json, write_text, write_whole
from kit.infer.stack import Stack, StackCard, WindowProbs, clip_image
from kit.labels.bootstrap import Interval, bootstrap_difference
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels
from kit.models.checkpoint import FORMAT, checkpoint_content, tensors_of
from kit.models.stackers import STACKERS, Stacker
from kit.models.tagger import Tagger
from kit.train.losses import average_loss, bce_loss
from kit.train.oof import HeldOut, OofPredictions, held_out_models, write_oof
from kit.train.relabel import predict_pseudo_labels
from kit.train.trainer import mixed_seed


@dataclass(frozen=True)
class StackConfig(Config):
    """How a second level learns."""

    kind: str = setting("class-mixer", "what reads the runs' predictions", choices=tuple(STACKERS))
    network: dict[str, Any] = setting({}, "its settings")
    epochs: int = setting(30, "passes over the other folds' rows", low=1)
    batch_size: int = setting(32, "rows per step, at least", low=2)
    lr: float = setting(1e-3, "its highest, in one cycle", low=0)
    columns: int = setting(40, "least windows of an image, and most in training", low=1)
    seed: int = setting(0, "of the weights, the order of rows and dropout", low=0)

    def check(self) -> None:
        config: type[Config] = STACKERS[self.kind][0]
        object.__setattr__(self, "network", config.from_dict(self.network).to_dict())


@dataclass(frozen=True)
class StackResult:
    """A stack's folder, and what it, its runs and their plain mean score out of fold."""

    folder: Path
    kind: str
    clips: int
    runs: dict[str, float]
    mean: float
    score: float
    gain: Interval

    def __str__(self) -> str:
        scores = {**self.runs, "plain mean of the runs": self.mean, self.kind: self.score}
        lines = [f"{self.folder / 'stack.pt'}: lwlrap out of fold on {self.clips} clips, folds cross-fitted"]
        lines += [f"  {score:.4f}  {name}" for name, score in scores.items()]
        lines.append(f"gain over the plain mean: {self.gain}")
        if self.gain.value <= 0:
            lines.append("THE STACK DOES NOT BEAT THE PLAIN MEAN: submit the runs' own checkpoints instead.")
        return "\n".join(lines)

    __repr__ = __str__


def stack(
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    kind: str = "class-mixer",
    audio: str | Path | None = None,
    set: list[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> StackResult:
    """Train a second level on several runs' out-of-fold predictions, and pack all in OUT/stack.pt, to submit alone.

    Each fold's network learns from the other folds' rows, whose predictions come from models that knew this fold's
    labels: these reach it at second order. The labels are the first run's. OUT holds oof.csv and folds.csv as a run.

    Options:
        runs: folders of runs on the same clips and folds, each with its oof.csv
        out: the folder to write
        kind: class-mixer, gated-mlp, or image-stacker, which reads windows
        audio: the folder that holds the clips, for image-stacker
        set: settings as key=value, e.g. epochs=60 network.widths=[256,128]
        seed: of the weights, the order of rows and dropout
        device: cpu or cuda, to hear; else one that computes
        threads: that decode; else one per core
        progress: show a bar
    """
    config, folder = StackConfig(kind, seed=seed).override(set or []), Path(out)
    folders = [Path(runs)] if isinstance(runs, str | Path) else [*map(Path, runs)]
    if not folders or len({path.resolve() for path in [*folders, folder]}) <= len(folders):
        raise KitError("stack wants folders of runs, each once, and another as out.")
    if (folder / "recipe.json").exists():
        raise KitError(f"{folder} holds a run: choose another --out.")
    with torch.random.fork_rng(devices=[]):  # building a network draws weights
        first, models = read_run(folders[0])
        found = [(first, models), *(read_run(path, folders[0], first) for path in folders[1:])]
        predictions = np.stack([run.probabilities for run, _ in found], axis=1)
        inputs, columns = [*torch.from_numpy(predictions).float()], 0
        if config.kind == "image-stacker":
            if audio is None:
                raise KitError("an image-stacker hears the clips anew: give audio.")
            if models[0].tagger.card.inference.mode != "windows":
                raise KitError(f"{folders[0]} hears whole clips: begin with a run of inference.mode=windows.")
            heard = [
                predict_pseudo_labels([path], audio, 0, device, threads, progress)[0] for path in folders
            ]
            inputs, columns = prediction_images(first, predictions, heard, config.columns), config.columns
        taggers = [(held.tagger, r) for r, (_, of_run) in enumerate(found) for held in of_run]
        names, run_of = tuple(path.resolve().name for path in folders), tuple(r for _, r in taggers)
        card = StackCard(config.kind, config.network, names, run_of, first.classes, columns)
        networks, answers = cross_fit(config, card, inputs, first)
    said, mean = replace(first, probabilities=answers), predictions.mean(axis=1)
    by_run = {str(path): run.lwlrap for path, (run, _) in zip(folders, found, strict=True)}
    gain = bootstrap_difference(lwlrap, first.truth, answers, mean)
    plain = lwlrap(first.truth, mean)
    result = StackResult(folder, config.kind, len(mean), by_run, plain, said.lwlrap, gain)
    write_text(folder / "folds.csv", (folders[0] / "folds.csv").read_text(encoding="utf-8"))
    write_oof(folder, said)
    write_json(folder / "stack.json", asdict(result) | {"folder": str(folder), "settings": config.to_dict()})
    made = Stack(replace(card, oof_score=round(said.lwlrap, 6)), networks)
    save_stack(folder / "stack.pt", made, [tagger for tagger, _ in taggers])
    return result


def read_run(
    folder: Path, other: Path | None = None, first: OofPredictions | None = None
) -> tuple[OofPredictions, list[HeldOut]]:
    """A run's oof.csv and models, clips and classes in the order of the `first` run."""
    if (folder / "stack.pt").exists():
        raise KitError(f"{folder} is a stack itself: give the runs that it reads.")
    models, oof = [*held_out_models(folder).values()], folder / "oof.csv"
    if not oof.is_file() or not all(held.tagger.card.calibrated for held in models):
        raise KitError(f"{folder} lacks its calibrations or oof.csv: run `oof` on it.")
    table, own = read_table(oof, ("fname", "fold"), exact=True), models[0].tagger.card.classes
    homes = dict(zip(table.columns["fname"], table.numbers("fold", kind=int), strict=True))
    held = {name: of.tagger.card.fold for of in models for name in of.names}
    check_same(held, folder, homes, oof)
    names, classes = (first.names, first.classes) if first else (tuple(homes), own)
    if first and other:
        check_same(dict(zip(names, first.folds.tolist(), strict=True)), other, homes, folder)
    if strange := sorted({*classes} ^ {*own} | {"fname", "fold", *classes} ^ {*table.columns}):
        raise KitError(f"{folder} has other classes than its taggers or the first, e.g. {strange[0]!r}.")
    columns = [table.numbers(name, "a probability", lambda p: 0 <= p <= 1) for name in classes]
    said = dict(zip(homes, zip(*columns, strict=True), strict=True))
    known = {name: row for of in models for name, row in zip(of.names, of.truth, strict=True)}
    folds, truth, probabilities = (np.array([of[name] for name in names]) for of in (homes, known, said))
    return OofPredictions(names, classes, folds, truth, probabilities, {}), models


def check_same(homes: Mapping[str, Any], here: Path, others: Mapping[str, Any], there: Path) -> None:
    """Raise KitError that names the first clip whose fold differs between two places."""
    for name, _ in sorted(homes.items() ^ others.items()):
        one, other = (f"fold {of[name]}" if name in of else "no fold" for of in (homes, others))
        raise KitError(f"{name!r} is in {one} of {here} and in {other} of {there}: stack runs of one split.")


def prediction_images(
    first: OofPredictions, predictions: np.ndarray, heard: Sequence[SoftLabels], columns: int
) -> list[Tensor]:
    """The image of each clip; what a run could not hear is one window of its prior.

    Shape:  predictions (n, m, K)
    """
    told: list[list[WindowProbs]] = [[] for _ in first.names]
    for r, soft in enumerate(heard):
        order = [soft.classes.index(name) for name in first.classes]
        for name, of_clip, prior in zip(first.names, told, predictions[:, [r]], strict=True):
            rows: Any = soft.rows.get(name, [])
            said = np.mean([t[rows] for t in soft.times], axis=0), soft.targets[rows][:, order]
            of_clip.append([said if len(rows) else (np.zeros(1), prior)])
    return [clip_image(of_clip, columns) for of_clip in told]


def cross_fit(
    config: StackConfig, card: StackCard, inputs: Sequence[Tensor], first: OofPredictions
) -> tuple[list[Stacker], np.ndarray]:
    """A network for each fold, of the other folds' rows, and its answers there. Shape: inputs n -> answers (n, K)"""
    networks, answers, there = [], np.empty(first.truth.shape), np.unique(first.folds)
    if len(there) < 2:
        raise KitError("a stack wants two folds or more: train the others.")
    for fold in there.tolist():
        learn, held = (np.flatnonzero(rows).tolist() for rows in (first.folds != fold, first.folds == fold))
        torch.manual_seed(mixed_seed(config.seed, fold))
        x = torch.stack([inputs[i][..., : card.columns or None] for i in learn])
        networks.append(fit_stacker(config, card.new_network(), x, torch.from_numpy(first.truth[learn])))
        answers[held] = Stack(card, networks[-1:]).answer([inputs[i] for i in held])
    return networks, answers


def fit_stacker(config: StackConfig, network: Stacker, x: Tensor, truth: Tensor) -> Stacker:
    """A network fitted to rows, by torch's own generator. Shape: x (n, m, K) or (n, m, K, W), truth (n, K)"""
    steps = max(1, len(x) // config.batch_size)
    optimizer, total = torch.optim.AdamW(network.parameters(), config.lr), max(2, config.epochs * steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total, cycle_momentum=False)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x)).tensor_split(steps):
            optimizer.zero_grad()
            torch.autograd.backward(average_loss(bce_loss(network(x[rows]), truth[rows])))
            optimizer.step()
            schedule.step()
    return network.eval()


def save_stack(path: Path, made: Stack, taggers: Sequence[Tagger]) -> None:
    """Write a stack and all its taggers as one file of tensors and JSON, whole."""
    parts = {"members": [*map(checkpoint_content, taggers)], "networks": [*map(tensors_of, made.networks)]}
    content = {"format": FORMAT, "card": json.dumps(made.card.to_dict()), **parts}
    write_whole(path, lambda handle: torch.save(content, handle))
