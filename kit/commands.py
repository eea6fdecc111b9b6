"""The commands of the command line."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kit.audio.fingerprint import fingerprint_frontend, fingerprint_of_spec, near_duplicates
from kit.cli import Command
from kit.competitions import find_data, fitting_checkpoints
from kit.core.errors import KitError
from kit.core.files import write_text
from kit.core.runtime import tune_process
from kit.demo import run_demo
from kit.doctor import run_doctor
from kit.infer.loader import SpectrogramLoader
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.infer.template import locate_clips
from kit.labels.boxes import read_boxes
from kit.labels.folds import group_keys, make_folds
from kit.labels.table import read_clip_table
from kit.models.checkpoint import load_tagger, save_tagger, wrap_network
from kit.parts import list_parts
from kit.plots.clips import draw_contact_sheet
from kit.report import show
from kit.train.ablation import probe
from kit.train.dataset import box_table
from kit.train.oof import predict_oof
from kit.train.recipes import RECIPES, find_recipe
from kit.train.relabel import relabel
from kit.train.run import Run, flat_settings, train_run
from kit.train.self_training import self_train
from kit.train.stacking import stack


def train_by_name(
    recipe: str,
    audio: str,
    out: str,
    table: str | None = None,
    boxes: list[str] | None = None,
    soft: str | None = None,
    small: bool = False,
    set: list[str] | None = None,
    only_folds: list[int] | None = None,
    all_data: bool = False,
    group_column: str | None = None,
    deadline: str | None = None,
    backgrounds: str | None = None,
    corrections: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Run:
    """Train a recipe by its name, its rounds of relabelling included; the same command goes on where it stopped.

    Options:
        recipe: a name that `recipes` lists
        audio: the folder that holds the clips
        out: the run's folder
        table: CSV of fname,labels[,false_labels][,fold][,weight][,source]; with boxes recording_id,fold or none
        boxes: CSVs of true and of false boxes
        soft: CSV of soft labels for what is unknown
        small: the recipe's small variant, for two cores
        set: settings, e.g. epochs=20 network.width=32
        only_folds: train these folds only, e.g. 0,1
        all_data: one model on everything instead of folds
        group_column: column whose equal values share a fold
        deadline: time limit like 8h; the best by then is kept
        backgrounds: folder of sounds to lay under crops
        corrections: JSON or CSV of clips with new labels, or to be dropped
        device: cpu or cuda; else one that computes
        threads: that decode; else one per core
        progress: show a bar
    """
    found = find_recipe(recipe, small, set)
    return self_train(
        found, table, audio, out, only_folds=only_folds, group_column=group_column, boxes=boxes, soft=soft,
        all_data=all_data, deadline=deadline, backgrounds=backgrounds, corrections=corrections,
        device=device, threads=threads, progress=progress,
    )  # fmt: skip


def list_recipes(name: str | None = None, small: bool = False) -> str:
    """The recipes with their sources, or every setting of one.

    Options:
        name: the recipe whose settings to print
        small: its small variant
    """
    if name is None:
        return "\n".join(f"{recipe.name:18} {recipe.source}" for recipe in RECIPES.values())
    recipe = find_recipe(name, small)
    lines = [f"{recipe.name}: {recipe.source}"]
    for key, value in flat_settings(recipe.to_dict()).items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        lines += [f"  {key}={text}"] * (key not in ("name", "source"))
    return "\n".join(lines)


def compute_fingerprints(
    names: Sequence[str], audio: str, threads: int | None, progress: bool
) -> list[np.ndarray]:
    """Compute the fingerprint of each clip; a clip that cannot be read gets an empty one, and a note."""
    tune_process()
    prints = [np.zeros(0, np.int64) for _ in names]
    frontends = {"": fingerprint_frontend()}
    paths = locate_clips(names, Path(audio))
    loader = SpectrogramLoader(paths, frontends, torch.device("cpu"), threads=threads)
    for chunk in loader.walk("fingerprint", progress):
        clips, specs = loader.specs(chunk, "")
        for clip, spec in zip(clips, specs, strict=True):
            prints[clip] = fingerprint_of_spec(spec)
        loader.drop(chunk, "")
    loader.print_failures(names)
    return prints


def add_folds(
    out: str, table: str | None = None, boxes: list[str] | None = None, audio: str | None = None, n_folds: int = 5,
    seed: int = 0, group_column: str | None = None, threads: int | None = None, progress: bool = True,
) -> str:  # fmt: skip
    """Write a table with a multilabel-stratified fold column, groups kept together.

    With audio, a column `group` holds the first clip of those that copies, excerpts and group_column link.

    Options:
        out: the CSV to write
        table: CSV of fname,labels and more
        boxes: in its place two CSVs of true and of false boxes; a row per recording
        audio: the folder of the clips, to look for near-duplicates
        n_folds: how many folds
        seed: breaks ties
        group_column: column whose equal values share a fold
        threads: that decode; else one per core
        progress: show a bar
    """
    if (table is None) == (boxes is None) or len(boxes or "TF") != 2:
        raise KitError("give --table CSV, or --boxes and two CSVs, of true and of false positives.")
    frame = read_clip_table(table) if table else box_table(read_boxes(*boxes or ()), None)
    if taken := {"fold", *(["group"] if audio and group_column != "group" else [])} & {*frame}:
        raise KitError(f"{table} has a {taken.pop()} column already: drop it to make new ones.")
    by, said = group_column, group_column or "none (--group-column, --audio)"
    if audio:
        names = frame["fname"]
        twins = near_duplicates(compute_fingerprints(list(names), audio, threads, progress))
        keys = group_keys(frame.assign(fname=group_keys(frame, group_column), group=twins), "group")
        groups = names.groupby(keys)
        frame["group"] = groups.transform("first").where(groups.transform("size") > 1, "")
        copies = Counter(filter(None, twins))
        by, said = "group", f"{len(copies)} groups of {copies.total()} near-duplicates"
        if copies:
            alike = names[np.array(twins) == next(iter(copies))]
            said += f", the first: {', '.join(alike[:5])}"
    frame["fold"] = make_folds(frame, n_folds, seed, by)
    write_text(Path(out), frame.to_csv(index=False, lineterminator="\n"))
    counts = ", ".join(map(str, frame["fold"].value_counts().sort_index()))
    return f"{out}: {len(frame)} clips in folds of {counts}, groups kept together: {said}"


COMMANDS = {
    "demo": Command(
        run_demo, "the whole job on toy clips: training, relabelling, a submission, a report",
        (find_data, fitting_checkpoints),
    ),
    "recipes": Command(list_recipes, "the named recipes with their sources; `recipes NAME` prints every setting"),
    "parts": Command(list_parts, "what systems are made of: families, heads, losses, metrics, blends"),
    "folds": Command(add_folds, "a table with a multilabel-stratified fold column, groups kept together"),
    "train": Command(train_by_name, "a run with a checkpoint per fold, by a recipe's name", (train_run, find_recipe)),
    "relabel": Command(relabel, "new labels for a table, by models that held its clips out"),
    "stack": Command(stack, "a second-level model on several runs, to submit by itself"),
    "oof": Command(predict_oof, "out-of-fold predictions and scores of a run"),
    "show": Command(show, "runs side by side, or a submission; --out report.html: pictures"),
    "augment": Command(draw_contact_sheet, "a picture of a clip under every augmentation"),
    "probe": Command(probe, "what a run's taggers hear: their loss without coordinate, bands or time"),
    "submit": Command(
        submit, "checkpoints and a folder of audio to a valid CSV, before the deadline",
        (predict_clips, wrap_network, save_tagger, load_tagger),
    ),
    "doctor": Command(run_doctor, "what is here: versions, devices that compute, memory, and what checkpoints hold"),
}  # fmt: skip
