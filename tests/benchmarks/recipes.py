"""Every recipe in its small form on the task it was made for. `python -m tests.benchmarks.recipes [RECIPE ...]`

Two of the task's four folds, of soundscapes two halves: out of fold and test lwlrap, minutes; `runs/recipes/cells.csv`
keeps what is done.
"""

import csv
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from kit.infer.submit import submit
from kit.labels.metrics import lwlrap
from kit.train.recipes import RECIPES, find_recipe
from kit.train.self_training import self_train
from tests.benchmarks.cells import ROOM, make_task, run_cells, say_figures
from tests.benchmarks.study import QUIET, read_truth

BOXED = ("freq-coord", "freq-crop")
FOLDS = (1, 2)


def train_cell(name: str) -> None:
    """One recipe: trained, submitted, scored."""
    torch.set_num_threads(1)
    began, folder, kind = (
        time.process_time(),
        ROOM / "recipes" / name,
        "soundscapes" if name in BOXED else "tagging",
    )
    task, recipe = make_task(kind), find_recipe(name, small=True)
    if kind == "tagging":
        table, audio = task / "train_curated.csv", task / "train_curated"
        run = self_train(recipe, table, audio, folder, only_folds=FOLDS, **QUIET)
    else:
        boxes = [task / "train_tp.csv", task / "train_fp.csv"]
        halves = replace(recipe, n_folds=2)
        run = self_train(halves, None, task / "train", folder, boxes=boxes, **QUIET)
    out = folder / "submission.csv"
    submit(f"{folder}/fold_*.pt", task / "test", out, task / "sample_submission.csv", **QUIET)
    assert run.oof is not None
    names, truth = read_truth(task)
    rows = {row[0]: row[1:] for row in csv.reader(out.read_text(encoding="utf-8").splitlines()[1:])}
    said = np.array([rows.get(name) or rows[name.removesuffix(".flac")] for name in names], float)
    prior = lwlrap(truth, np.tile(truth.mean(axis=0), (len(truth), 1)))
    say_figures(began, oof=run.oof.lwlrap, test=lwlrap(truth, said), prior=prior)


def main(words: list[str]) -> None:
    """Train what is not trained yet, and print the table."""
    if words[:1] == ["--cell"]:
        return train_cell(words[1])
    for kind in ("tagging", "soundscapes"):
        make_task(kind)
    names = words or list(RECIPES)
    done = run_cells("tests.benchmarks.recipes", names, ROOM / "recipes" / "cells.csv", minutes=24 * 60)
    print(
        "| recipe | task | out of fold | test | class frequencies | minutes of two cores |\n|---|---|---|---|---|---|"
    )
    for name in (name for name in names if name in done):
        task, of = "soundscapes" if name in BOXED else "tagging", done[name]
        scores = f"{of['oof']:.3f} | {of['test']:.3f} | {of['prior']:.3f}"
        print(f"| `{name}` | {task} | {scores} | {of['cpu_s'] / 120:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
