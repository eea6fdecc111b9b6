"""What the write-ups claim, measured: one split, three seeds, paired. `python -m tests.benchmarks.study [MINUTES]`

Each cell trains one arm with one seed and scores the test set; `runs/study/cells.csv` keeps what is done, so that the
same call goes on. What the minutes do not reach says so.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.runtime import Runtime
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import classes_of_template, label_targets, read_clip_table
from kit.models.checkpoint import load_tagger
from kit.models.tagger import Tagger
from kit.train.dataset import load_clips
from kit.train.pseudo_labels import RELABEL_METHODS, SelfTrainingConfig
from kit.train.recipes import find_recipe
from kit.train.run import train_run
from kit.train.self_training import self_train
from kit.train.stacking import stack
from tests.benchmarks.cells import ROOM, make_task, run_cells, say_figures

SEEDS = (0, 1, 2)
STUDY = ROOM / "study"
SPLIT = 1
QUIET: dict[str, Any] = {"threads": 1, "progress": False}
PYRAMID = (
    "frontend.n_mels=64", "network.width=12", "crop_s=3.0", "epochs=20", "no_augment_epochs=3", "validate_every=20",
    "sampling.steps=20",
)  # fmt: skip
WINDOWS = ("frontend.n_mels=32", "epochs=20", "validate_every=20", "sampling.steps=20")
BOXED = ("n_folds=2",)


def read_truth(task: Path) -> tuple[list[str], np.ndarray]:
    """The test clips of a task and what is true of them. Shape: -> n names, (n, K)"""
    if task.name == "tagging":
        table = read_clip_table(task / "test_truth.csv")
        labels = list(table["true_labels"])
        return list(table["fname"]), label_targets(
            labels, classes_of_template(task / "sample_submission.csv")
        )
    import pandas

    truth = pandas.read_csv(task / "truth.csv").query("part == 'test'")
    classes = list(pandas.read_csv(task / "species.csv")["label"])
    return [f"{name}.flac" for name in truth["recording_id"]], label_targets(list(truth["labels"]), classes)


def score_on_test(checkpoints: Sequence[Path], task: Path, inference: InferenceConfig | None = None) -> float:
    """The test lwlrap of the mean of some checkpoints."""
    names, truth = read_truth(task)
    clips = [task / "test" / name for name in names]
    return lwlrap(
        truth, predict_clips(list(checkpoints), clips, inference=inference, threads=1).probabilities
    )


def join_tables(path: Path, noisy: bool, source: bool = True) -> Path:
    """The curated table, with the noisy one below and a column `source`; their clips lie in one folder's subfolders."""
    import pandas

    task, parts = make_task("tagging"), []
    for kind in ("curated", "noisy")[: 1 + noisy]:
        table = read_clip_table(task / f"train_{kind}.csv")
        parts.append(table.assign(fname=f"train_{kind}/" + table["fname"], source=kind if source else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.concat(parts).to_csv(path, index=False)
    return path


def tagging(
    base: str, *changes: str, noisy: bool = False, method: str | None = None, **words: Any
) -> Callable[[Path, int], dict[str, float]]:
    """An arm of the tagging task: a small recipe with changes, learnt on all folds but one, or as `words` say."""

    def run(folder: Path, seed: int) -> dict[str, float]:
        task, recipe = make_task("tagging"), find_recipe(base, True, [*changes, f"seed={seed}"])
        table = join_tables(folder / "table.csv", noisy or method is not None)
        told: dict[str, Any] = {"only_folds": [SPLIT]} | words
        if method is not None:
            curated, home = join_tables(folder / "curated.csv", False), STUDY / "teachers" / str(seed)
            teacher = train_run(recipe, curated, task, home, **QUIET)
            table, told["soft"] = pseudo_labels(teacher.folder, table, folder, task, method)
        done = train_run(recipe, table, task, folder / "run", **told, **QUIET)
        found = sorted(done.folder.glob("*.pt"))
        oof = {} if done.oof is None else {"oof": done.oof.lwlrap}
        return {"test": score_on_test(found, task), **oof}

    return run


def pseudo_labels(teacher: Path, table: Path, folder: Path, task: Path, method: str) -> tuple[Path, Path]:
    """The noisy clips labelled anew by a teacher of curated clips alone, which has never met them."""
    import pandas

    joined = read_clip_table(table)
    names = joined["fname"][joined["source"] == "noisy"]
    said = predict_clips(sorted(teacher.glob("fold_*.pt")), [task / name for name in names], threads=1)
    frame = pandas.DataFrame(said.probabilities, columns=list(said.classes))
    frame.insert(0, "fname", list(names))
    soft = SoftLabels(tuple(names), said.classes, said.probabilities)
    joined["false_labels"] = "*"
    number = {"agreement": 1, "predict": 2}[method]
    done = RELABEL_METHODS["agreement"](joined, soft, SelfTrainingConfig(top_k=(0.4,)), number)
    out, told = folder / "relabelled.csv", folder / "soft.csv"
    done.frame.to_csv(out, index=False)
    write_soft_labels(told, done.soft)
    return out, told


def inference(base: str, *changes: str, set1: bool = False) -> Callable[[Path, int], dict[str, float]]:
    """Window-SNR on curated clips, and with set 1 of the noisy ones, heard with its pool and with the plain mean."""

    def run(folder: Path, seed: int) -> dict[str, float]:
        task, recipe = make_task("tagging"), find_recipe(base, True, [*changes, f"seed={seed}"])
        curated, home = join_tables(folder / "curated.csv", False), STUDY / "listeners" / str(seed)
        model = train_run(recipe, curated, task, home, only_folds=[SPLIT], **QUIET).folder
        if set1:
            teacher = load_tagger(model / f"fold_{SPLIT}.pt")
            table = add_set1(teacher, join_tables(folder / "table.csv", True), folder, task)
            model = train_run(recipe, table, task, folder / "run", only_folds=[SPLIT], **QUIET).folder
        found, own = [model / f"fold_{SPLIT}.pt"], recipe.inference
        return {pool: score_on_test(found, task, replace(own, pool=pool)) for pool in ("mean", "snr", "max")}

    return run


def add_set1(teacher: Tagger, table: Path, folder: Path, task: Path) -> Path:
    """The table with the noisy clips' windows of the highest signal-to-noise ratio, labelled by the teacher."""
    joined = read_clip_table(table)
    noisy = list(joined["fname"][joined["source"] == "noisy"])
    _, heard = load_clips(noisy, task, {"": teacher.frontend}, Runtime(torch.device("cpu"), 1, False))
    said = Predictor(teacher, torch.device("cpu")).predict(list(heard[""].values()))
    names, spans, beliefs = [], [], []
    for place, of_clip in zip(heard[""], said, strict=True):
        assert of_clip is not None
        names += [noisy[place]] * len(of_clip.spans)
        spans += list(of_clip.spans)
        beliefs.append(teacher.probabilities(torch.from_numpy(of_clip.logits)).numpy())
    begin, end = np.array(spans).T / teacher.card.frontend.frames_per_s
    soft = SoftLabels(tuple(names), teacher.card.classes, np.concatenate(beliefs), begin, end)
    joined["false_labels"] = "*"
    done = RELABEL_METHODS["snr"](joined, soft, SelfTrainingConfig(top_k=(0.15,)), 1)
    out = folder / "set1.csv"
    frame = done.frame[(done.frame["source"] == "curated") | (done.frame["source"] == "set1")]
    frame.to_csv(out, index=False)
    return out


def soundscapes(*changes: str, rounds: int = 0) -> Callable[[Path, int], dict[str, float]]:
    """An arm of the soundscape task: two folds on boxes, then so many rounds; the test score after each."""

    def run(folder: Path, seed: int) -> dict[str, float]:
        task = make_task("soundscapes")
        settings = [*BOXED, f"self_training.iterations={rounds}", *changes, f"seed={seed}"]
        recipe = find_recipe("freq-coord", True, settings)
        boxes, figures = [task / "train_tp.csv", task / "train_fp.csv"], {}
        done = self_train(recipe, None, task / "train", folder / "run", boxes=boxes, **QUIET)
        heard = replace(recipe.inference, hop_s=1.0)
        for number in range(rounds + 1):
            home = done.folder if number == rounds else done.folder / "rounds" / str(number)
            figures[f"round_{number}"] = score_on_test(sorted(home.glob("fold_*.pt")), task, heard)
        return figures

    return run


def stacked(folder: Path, seed: int) -> dict[str, float]:
    """Two pyramids on all folds, their mean against a class mixer and a gated MLP."""
    task, runs = make_task("tagging"), []
    table = join_tables(folder / "table.csv", False)
    for base, settings in (("max-pyramid-mel", PYRAMID), ("max-pyramid-stft", STFT)):
        recipe = find_recipe(base, True, [*settings, f"seed={seed}"])
        runs.append(train_run(recipe, table, task, folder / base, **QUIET).folder)
    figures = {"mean": score_on_test([path for run in runs for path in sorted(run.glob("fold_*.pt"))], task)}
    for kind in ("class-mixer", "gated-mlp"):
        stack(runs, folder / kind, kind, seed=seed, progress=False)
        figures[kind] = score_on_test([folder / kind / "stack.pt"], task)
    return figures


STFT = ("crop_s=3.0", "epochs=20", "no_augment_epochs=3", "validate_every=20", "sampling.steps=20")
MEL = "max-pyramid-mel"
# In the order in which minutes are spent, each with all its seeds.
ARMS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "pyramid": tagging(MEL, *PYRAMID),
    "bce": tagging(MEL, *PYRAMID, "loss=bce"),
    "no coordinate": tagging(MEL, *PYRAMID, 'frontend.channels=["log"]'),
    "no mixing": tagging(MEL, *PYRAMID, "mixup.p=0"),
    "rounds": soundscapes(rounds=3),
    "window-snr": inference("window-snr", *WINDOWS),
    "noisy as given": tagging(MEL, *PYRAMID, noisy=True),
    "noisy bootstrapped": tagging(
        MEL, *PYRAMID, "loss=bce", "sources.noisy.loss=bootstrap", "sources.noisy.weight=0.5", noisy=True
    ),
    "boxes, known masks": soundscapes("mixup.masks=known"),
    "noisy that agree": tagging(MEL, *PYRAMID, method="agreement"),
    "noisy predicted": tagging(MEL, *PYRAMID, method="predict"),
    "window-snr, set 1": inference("window-snr", *WINDOWS, set1=True),
    "full data": tagging(MEL, *PYRAMID, "loss=bce", only_folds=None, all_data=True),
    "five folds": tagging(MEL, *PYRAMID, "loss=bce", only_folds=None),
    "rounds without anchor": soundscapes("sampling.box_p=0", rounds=3),
    "stack": stacked,
}
# What each claim compares: (arm, its figure), (the arm it is held against, its figure).
CLAIMS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "LSEP against BCE": (("pyramid", "test"), ("bce", "test")),
    "frequency coordinate": (("pyramid", "test"), ("no coordinate", "test")),
    "union mixing": (("pyramid", "test"), ("no mixing", "test")),
    "noisy clips as given": (("noisy as given", "test"), ("pyramid", "test")),
    "noisy clips bootstrapped (BCE)": (("noisy bootstrapped", "test"), ("bce", "test")),
    "noisy clips that agree, 40 %": (("noisy that agree", "test"), ("pyramid", "test")),
    "and the others predicted": (("noisy predicted", "test"), ("pyramid", "test")),
    "three-state masks against the published": (("boxes, known masks", "round_0"), ("rounds", "round_0")),
    "round 1 of relabelling": (("rounds", "round_1"), ("rounds", "round_0")),
    "round 2": (("rounds", "round_2"), ("rounds", "round_0")),
    "round 3": (("rounds", "round_3"), ("rounds", "round_0")),
    "round 1 without anchor": (("rounds without anchor", "round_1"), ("rounds", "round_0")),
    "round 3 without anchor": (("rounds without anchor", "round_3"), ("rounds", "round_0")),
    "anchor in round 3": (("rounds", "round_3"), ("rounds without anchor", "round_3")),
    "listening by signal to noise, against the mean": (("window-snr", "snr"), ("window-snr", "mean")),
    "the same with set 1": (("window-snr, set 1", "snr"), ("window-snr, set 1", "mean")),
    "set 1, heard by the mean": (("window-snr, set 1", "mean"), ("window-snr", "mean")),
    "class mixer against the mean": (("stack", "class-mixer"), ("stack", "mean")),
    "gated MLP against the mean": (("stack", "gated-mlp"), ("stack", "mean")),
    "one full-data model against the folds' mean": (("full data", "test"), ("five folds", "test")),
}


def paired_interval(differences: np.ndarray) -> str:
    """Mean and 95 % interval of paired differences, by Student's t."""
    if len(differences) < 2:
        return "one seed only"
    half = {2: 12.71, 3: 4.303}[len(differences)] * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.3f} ({differences.mean() - half:+.3f} to {differences.mean() + half:+.3f})"


def tell(done: dict[str, dict[str, float]]) -> None:
    """A line per claim: both arms' means, and their paired difference."""
    print("| claim | with | without | difference, 95 % | seeds |\n|---|---|---|---|---|")
    for claim, ((arm, figure), (other, its)) in CLAIMS.items():
        pairs = [
            (done[f"{arm}/{seed}"][figure], done[f"{other}/{seed}"][its])
            for seed in SEEDS
            if f"{arm}/{seed}" in done and f"{other}/{seed}" in done
        ]
        if not pairs:
            print(f"| {claim} | not reached | | | 0 |")
            continue
        one, two = np.array(pairs).T
        print(
            f"| {claim} | {one.mean():.3f} | {two.mean():.3f} | {paired_interval(one - two)} | {len(pairs)} |"
        )


def main(words: list[str]) -> None:
    """Run the cells that are not done, within the minutes, and print the table."""
    if words[:1] == ["--cell"]:
        torch.set_num_threads(1)
        arm, _, seed = words[1].rpartition("/")
        began = time.process_time()
        say_figures(began, **ARMS[arm](STUDY / arm.replace(" ", "_").replace(",", "") / seed, int(seed)))
        return
    for kind in ("tagging", "soundscapes"):
        make_task(kind)
    minutes = float(words[0]) if words else 45.0
    cells = [f"{arm}/{seed}" for arm in ARMS for seed in SEEDS]
    tell(run_cells("tests.benchmarks.study", cells, STUDY / "cells.csv", minutes))


if __name__ == "__main__":
    main(sys.argv[1:])
