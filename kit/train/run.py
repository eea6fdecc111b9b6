"""Train a run: one checkpoint per fold and out-of-fold predictions."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.core.clock import Deadline, progress_bar, set_deadline
from kit.core.errors import KitError, choose
from kit.core.files import file_digest, write_text
from kit.core.runtime import pick_device, tune_process
from kit.infer.predictor import Predictor
from kit.labels.boxes import Boxes, class_bands_hz, read_boxes
from kit.labels.calibration import Calibration
from kit.labels.folds import check_no_leak, make_folds
from kit.labels.soft import read_soft_labels
from kit.labels.table import known_prevalences, read_clip_table
from kit.models.checkpoint import read_checkpoint, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.train.dataset import Dataset, box_table, load_dataset
from kit.train.oof import HeldOut, OofPredictions, join_folds, names_digest, score_held_out, write_oof
from kit.train.recipe import Recipe, check_recipe
from kit.train.trainer import Trainer, mixed_seed


@dataclass(frozen=True)
class Run:
    """A trained run: its folder and what it says out of fold; nothing where one model learnt from all clips."""

    folder: Path
    recipe: Recipe
    oof: OofPredictions | None

    def __str__(self) -> str:
        return f"{self.folder}: {self.recipe.name}\n{self.oof or 'one model of all clips: all.pt'}"

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
) -> Run:
    """Train a tagger per fold and predict every clip by the fold that never saw it.

    The same call on the same folder goes on where the last one stopped. Folds are the table's `fold` column, else
    stratified, one `group_column` value together; fold -1 is never held out. With `boxes`, CSVs of true and of
    false ones, the table is `recording_id,fold` or None. `soft` labels fill what is unknown. `all_data` trains one
    model on everything, all.pt, instead.
    Errors: KitError for what cannot be read, learnt or scored, and a folder that holds another run
    """
    check_recipe(recipe)
    tune_process()
    chosen, remark = pick_device(device)
    if remark:
        print(f"note: {remark}", flush=True)
    clock = Deadline() if deadline is None else set_deadline(deadline)
    if boxes and len(boxes) != 2:
        raise KitError(f"boxes wants two CSVs, of true and of false ones, got {len(boxes)}.")
    if table is None and not boxes:
        raise KitError("train wants a table of clips, or boxes: --table CSV, or --boxes TRUE FALSE.")
    read = read_boxes(boxes[0], boxes[1]) if boxes else None
    recipe = with_bands(recipe, read) if read else recipe
    frame = box_table(read, table) if read else read_clip_table("" if table is None else table)
    folder, beliefs = Path(out), None if soft is None else read_soft_labels(soft)
    folds = choose_folds(frame, recipe, group_column)
    there = sorted(fold for fold in set(folds.tolist()) if fold >= 0)
    wanted = there if only_folds is None else sorted(set(only_folds))
    if not all_data and (not wanted or not set(wanted) <= set(there)):
        raise KitError(f"folds {wanted} were asked for, the table has {there}.")
    given = [path for path in (*(boxes or ()), soft) if path is not None]
    files = run_files(recipe, frame, folds, given)
    check_run(folder, files)
    sounds = None if backgrounds is None else Path(backgrounds)
    data = load_dataset(recipe, frame, folds, Path(audio), chosen, threads, progress, read, beliefs, sounds)
    check_folds(data, [None] if all_data else wanted)
    for name, text in files.items():
        write_text(folder / name, text)
    jobs = [(fold, s) for fold in ([None] if all_data else wanted) for s in range(recipe.seeds)]
    parts: list[tuple[np.ndarray, OofPredictions]] = []
    with progress_bar(len(jobs) * recipe.epochs, "train", "epochs", progress) as bar:
        for done, (fold, replica) in enumerate(jobs):
            share = Deadline(clock.now() + clock.left_s() / (len(jobs) - done), clock.now)
            rows, said = train_fold(recipe, data, fold, folder, chosen, bar, replica, share)
            parts += [(rows, said)] if said else []
    if all_data:
        return Run(folder, recipe, None)
    result = join_folds(parts)
    write_oof(folder, result)
    return Run(folder, recipe, result)


def with_bands(recipe: Recipe, boxes: Boxes) -> Recipe:
    """A recipe of freq-crop whose classes listen where their boxes are; any other as it is."""
    if recipe.network["family"] != "freq-crop":
        return recipe
    bands = class_bands_hz(boxes).clip(max=recipe.frontend.sample_rate / 2).tolist()
    if recipe.network["form"] == "pooled":
        return replace(recipe, network={**recipe.network, "bands_hz": bands})
    return replace(recipe, frontend=replace(recipe.frontend, bands_hz=bands))


def choose_folds(frame: Any, recipe: Recipe, group_column: str | None) -> np.ndarray:
    """The table's folds, or stratified ones. Errors: KitError for a column that is not there, or a group that leaks"""
    if "fold" not in frame:
        return make_folds(frame, recipe.n_folds, recipe.seed, group_column)
    folds = np.asarray(frame["fold"])
    count = len(np.unique(folds[folds >= 0]))
    if count != recipe.n_folds:
        print(f"note: the table has {count} folds; n_folds={recipe.n_folds} is not used.", flush=True)
    if "begin_s" in frame:
        check_no_leak(folds, list(frame["fname"]))
    if group_column is not None:
        choose("column", group_column, frame)
        check_no_leak(folds, list(frame[group_column]))
    return folds


def check_folds(data: Dataset, folds: Sequence[int | None]) -> None:
    """Raise KitError for a fold that has too little to learn from, or nothing to be scored on."""
    for fold in folds:
        clips = len(data.train_split(fold).specs)
        if clips < 2:
            raise KitError(f"fold {fold} has {clips} training clips: at least 2 are needed.")
        heard = [i for i in data.held_out(fold) if i in data.specs]
        if fold is not None and not (data.truth[heard] == 1).any():
            raise KitError(
                f"fold {fold} holds no clip that can be heard and has a label: it cannot be scored."
            )


def run_files(
    recipe: Recipe, frame: Any, folds: np.ndarray, given: Sequence[str | Path] = ()
) -> dict[str, str]:
    """What says which run a folder holds: recipe, folds and the hashes of other labels, as text."""
    table = frame.assign(fold=folds)
    if "end_s" in table:
        table["end_s"] = table["end_s"].map(lambda t: "" if t == math.inf else t)
        table["begin_s"] = [
            t if end != "" else "" for t, end in zip(table["begin_s"], table["end_s"], strict=True)
        ]
    text = table.to_csv(index=False, lineterminator="\n")
    files = {"recipe.json": json.dumps(recipe.to_dict(), indent=1) + "\n", "folds.csv": text}
    digests = {Path(path).name: file_digest(Path(path)) for path in given}
    return files | ({"labels.json": json.dumps(digests, indent=1) + "\n"} if digests else {})


def check_run(folder: Path, files: Mapping[str, str]) -> None:
    """Raise KitError where a folder holds another run, saying what differs."""
    if not (folder / "state").is_dir() and not any(folder.glob("fold_*.pt")):
        return
    for path, text in ((folder / name, text) for name, text in files.items()):
        old = path.read_text(encoding="utf-8") if path.is_file() else text
        if old != text and not (path.suffix == ".json" and json.loads(old) == json.loads(text)):
            differ = ["its clips or folds differ from the table's"]
            if path.suffix == ".json":
                there, asked = flat_settings(json.loads(old)), flat_settings(json.loads(text))
                pairs = ((key, there.get(key), value) for key, value in asked.items())
                differ = [f"{key} is {a!r} there and {b!r} here" for key, a, b in pairs if a != b][:4]
            raise KitError(f"{path} belongs to another run ({', '.join(differ)}): choose another --out.")


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= flat_settings(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def new_tagger(
    recipe: Recipe, data: Dataset, fold: int | None, start: bool = True, replica: int = 0
) -> Tagger:
    """A tagger with fresh weights, drawn from the run's seed, and its fold's card; `start` as build_network."""
    known = data.truth if fold is None else data.truth[data.folds != fold]
    card = TaggerCard(
        data.classes, tuple(known_prevalences(known)), recipe.frontend, recipe.inference, recipe.network,
        output=recipe.output, fold=fold, held_out=names_digest([data.names[i] for i in data.held_out(fold)]),
        seed=recipe.seed + replica, recipe=recipe.to_dict(),
    )  # fmt: skip
    more = [replica] if replica else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(recipe.seed, 2**21 if fold is None else fold, *more, 2**20))
        return build_tagger(card, start)


def train_fold(
    recipe: Recipe, data: Dataset, fold: int | None, folder: Path, device: torch.device, bar: Any, replica: int = 0,
    deadline: Deadline | None = None,
) -> tuple[np.ndarray, OofPredictions | None]:  # fmt: skip
    """Train one fold, or take up its state; write its checkpoint, and predict its held-out clips.

    Of all clips (fold None) the last weights are kept, and the calibration is the mean of the folds' in the folder.
    """
    name = ("all" if fold is None else f"fold_{fold}") + (f"_seed_{replica}" if replica else "")
    state_path, rows = folder / "state" / f"{name}.resume.pt", data.held_out(fold)
    tagger = new_tagger(recipe, data, fold, not state_path.is_file(), replica)
    predictor = Predictor(tagger, device)
    held = HeldOut(tagger, rows, [data.names[i] for i in rows], data.truth[rows])
    specs = {place: data.specs[row] for place, row in enumerate(rows) if row in data.specs}
    failures = {place: data.failures[row] for place, row in enumerate(rows) if row in data.failures}
    audio_s = sum(data.seconds[rows[place]] for place in specs)
    training = Trainer(recipe, tagger, data.train_split(fold), fold, device, replica, data.backgrounds)
    training.restore(state_path)
    if training.epoch:
        bar.update(training.epoch)
        said = f"was trained already up to epoch {training.epoch} of {recipe.epochs}"
        bar.write(f"note: {training.place} {said}.")
    heard: dict[int, OofPredictions] = {}

    def validate(epoch: int | None = None) -> float:
        output = recipe.output_at(epoch or training.epoch)
        tagger.card = replace(tagger.card, output=output, calibration=None)
        if fold is None:
            return math.nan
        began = time.perf_counter()
        said = dict(zip(specs, predictor.predict(list(specs.values())), strict=True))
        cost = round((time.perf_counter() - began) / audio_s, 6)
        tagger.card = replace(tagger.card, cost=cost, cost_device=device.type)
        heard.clear()
        heard[training.epoch] = score_held_out(held, predictor, said, failures)
        return heard[training.epoch].lwlrap

    def after_epoch(row: Mapping[str, float]) -> None:
        bar.update(1)
        bar.set_postfix_str(f"{training.place} loss {row['loss']:.4f}")

    training.train(state_path, validate, after_epoch, deadline)
    if training.epoch < recipe.epochs:
        bar.write(f"note: the deadline cut {training.place} after epoch {training.epoch} of {recipe.epochs}.")
    write_history(folder / "history.csv", f"{'all' if fold is None else fold},{replica},", training)
    tagger.card = replace(tagger.card, drawn=tuple(training.prevalences))
    if fold is None:
        tagger.card = replace(tagger.card, calibration=mean_calibration(folder, tagger))
    elif training.kept_epoch not in heard:
        validate(training.kept_epoch)
    save_tagger(folder / f"{name}.pt", tagger)
    return rows, None if fold is None else heard.popitem()[1]


def mean_calibration(folder: Path, tagger: Tagger) -> Calibration | None:
    """The mean of what the folds of a run fitted; None, with a note, without any."""
    if tagger.card.output == "probability":
        return None
    fitted = [read_checkpoint(path)[0].calibration for path in sorted(folder.glob("fold_*.pt"))]
    known = [one for one in fitted if one is not None]
    if not known:
        print(
            "note: a rank score without folds in its folder has no calibration: only --blend rank takes it."
        )
        return None
    scale, offset = (float(np.mean([getattr(one, what) for one in known])) for what in ("scale", "offset"))
    return Calibration(scale, offset)


def write_history(path: Path, mine: str, training: Trainer) -> None:
    """Write a row per epoch of the fold and seed that `mine` begins lines with; others' stay."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    lines = [line for line in lines if not line.startswith(mine)]
    for row, seconds in zip(training.history, training.seconds, strict=True):
        numbers = f"{row['epoch']},{row['loss']:.6g},{row['lr']:.6g},{row.get('lwlrap', '')},{seconds:.3f}"
        lines.append(mine + numbers)
    lines.sort(key=lambda line: [(len(cell), cell) for cell in line.split(",")[:2]])
    write_text(path, "\n".join(["fold,seed,epoch,loss,lr,lwlrap,seconds", *lines, ""]))
