"""ESC-10, its own five folds, from scratch: three systems and their ensemble. `python -m tests.benchmarks.esc10`"""

import sys
import time

import numpy as np
import torch

from kit.infer.blend import blend_scores
from kit.labels.table import label_targets, read_clip_table
from kit.train.recipes import find_recipe
from kit.train.run import train_run
from tests.benchmarks.cells import ESC10, ROOM, run_cells, say_figures

COMMON = [
    "optim.average=ema", "optim.ema_decay=0.99", "spec_augment.mask_p=0.6", "spec_augment.filter_p=0.7", "spec_augment.crop_p=0.6",
    "spec_augment.crop_scale=[0.6,1.0]", "spec_augment.crop_aspect=[0.75,1.33]",
]  # fmt: skip
SYSTEMS_OF_ESC10: dict[str, tuple[str, list[str]]] = {
    "max-pyramid-mel": (
        "max-pyramid-mel",
        [
            "frontend.n_mels=64", "frontend.n_fft=1024", "frontend.hop_length=512", "network.head.pool=mean-max",
            "epochs=80", "no_augment_epochs=8", "validate_every=80", "mixup.p=0.6", "spec_augment.time_share=0.12",
            "spec_augment.freq_share=0.12", *COMMON,
        ],
    ),
    "window-snr": (
        "window-snr",
        [
            "frontend.n_fft=1024", "frontend.normalize=none", "frontend.top_db=null", "network.width=16",
            "network.head.dropout=0.2", "inference.window_s=3.0", "crop_s=3.0", "epochs=80", "validate_every=80",
            "mixup.domain=energy", "mixup.labels=union", "mixup.convex=false", "mixup.beta=0", "mixup.p=0.6", *COMMON,
        ],
    ),
    "skip-attention": (
        "skip-attention",
        [
            "frontend.n_fft=1280", "network.width=10", "epochs=60", "validate_every=60", "keep=last",
            "optim.schedule=cosine", "optim.lr_start=3e-3", "optim.lr_peak=3e-3", *COMMON,
        ],
    ),
}  # fmt: skip
FOLDS = (1, 2, 3, 4, 5)


def run_folder(name: str) -> str:
    """Where a system's run lies."""
    return str(ROOM / "esc10" / name)


def train_cell(cell: str) -> None:
    """One fold of one system; its accuracy."""
    torch.set_num_threads(1)
    name, fold = cell.split("/")
    base, settings = SYSTEMS_OF_ESC10[name]
    recipe, began = find_recipe(base, small=True, overrides=settings), time.process_time()
    run = train_run(
        recipe, ESC10 / "labels.csv", ESC10 / "audio", f"{run_folder(name)}_{fold}", only_folds=[int(fold)],
        group_column="source_id", threads=1, progress=False,
    )  # fmt: skip
    assert run.oof is not None
    right = run.oof.probabilities.argmax(1) == run.oof.truth.argmax(1)
    say_figures(began, accuracy=float(right.mean()), lwlrap=run.oof.lwlrap)


def held_out_scores(name: str) -> tuple[list[str], np.ndarray]:
    """Each clip's probabilities by the fold that never saw it, of the folds that are done."""
    import pandas

    frames = [pandas.read_csv(f"{run_folder(name)}_{fold}/oof.csv") for fold in FOLDS]
    whole = pandas.concat(frames).sort_values("fname")
    return list(whole["fname"]), whole.iloc[:, 2:].to_numpy()


def main(words: list[str]) -> None:
    """Train what is not trained yet, then print the table."""
    if words[:1] == ["--cell"]:
        return train_cell(words[1])
    names = words or list(SYSTEMS_OF_ESC10)
    cells = [f"{name}/{fold}" for name in names for fold in FOLDS]
    done = run_cells("tests.benchmarks.esc10", cells, ROOM / "esc10" / "cells.csv", minutes=24 * 60)
    table = read_clip_table(ESC10 / "labels.csv").sort_values("fname")
    classes = sorted(set(table["labels"]))
    truth, scores = label_targets(list(table["labels"]), classes).argmax(1), []
    print("| system | accuracy | folds | minutes of two cores |\n|---|---|---|---|")
    for name in names:
        fnames, own = held_out_scores(name)
        assert fnames == list(table["fname"])
        scores.append(own)
        figures = [done[f"{name}/{fold}"] for fold in FOLDS]
        folds = ", ".join(f"{figure['accuracy']:.3f}" for figure in figures)
        minutes = sum(figure["cpu_s"] for figure in figures) / 120
        print(f"| {name} | {(own.argmax(1) == truth).mean():.4f} | {folds} | {minutes:.1f} |")
    for kind in ("mean", "geometric"):
        print(f"| all, {kind} | {(blend_scores(scores, kind=kind).argmax(1) == truth).mean():.4f} | | |")


if __name__ == "__main__":
    main(sys.argv[1:])
