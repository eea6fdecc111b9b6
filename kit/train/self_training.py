"""Self-training: train, relabel with out-of-fold predictions, and train again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.clock import Deadline, process_start, set_deadline
from kit.core.errors import KitError
from kit.core.files import read_table, write_rows, write_text
from kit.labels.boxes import Boxes
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import ALL_OTHERS, apply_corrections, clip_labels, read_clip_table, read_corrections
from kit.models.checkpoint import load_tagger, save_tagger
from kit.train.oof import OofPredictions, join_folds, write_oof
from kit.train.pseudo_labels import forget_labels, noisy_rows
from kit.train.recipe import Recipe, check_recipe
from kit.train.relabel import relabel
from kit.train.run import (
    Run,
    check_run,
    choose_folds,
    read_box_files,
    read_training_table,
    run_files,
    select_folds,
    train_run,
    with_bands,
)

BoxFiles = list[Path] | None


@dataclass(frozen=True)
class SelfTraining:
    """What all trainings of a self-training share. `options` are passed to train_run."""

    recipe: Recipe
    audio: str | Path
    clock: Deadline | None
    train: Callable[..., Run]
    options: Mapping[str, Any]

    def train_one(
        self, table: Path, soft: Path, out: Path, n_left: int, boxes: BoxFiles, **options: Any
    ) -> Run:
        """Train one run, with an equal share of the time for each of the `n_left` trainings to come."""
        deadline = None
        if self.clock is not None:
            share_s = self.clock.left_s() / n_left
            # train_run counts its deadline from the start of the process.
            deadline = self.clock.now() + share_s - process_start()
        return self.train(
            self.recipe,
            table,
            self.audio,
            out,
            soft=soft,
            boxes=boxes,
            deadline=deadline,
            **options,
            **self.options,
        )

    def train_teachers(
        self, table: Path, soft: Path, folder: Path, n_left: int, boxes: BoxFiles
    ) -> tuple[Path, Path]:
        """Train every run but the last, and relabel after each. What is done already is not done again.

        Returns the table and the soft labels for the last run.
        """
        plan = self.recipe.self_training
        runtime_options = {
            name: value for name, value in self.options.items() if name in ("device", "threads", "progress")
        }
        current_table = self.first_table(table, folder)
        current_soft = soft
        for number in range(1, plan.iterations + 1):
            teachers = [folder / str(k) for k in range(number)]
            labels = folder / str(number) / "labels"
            # A training writes oof.csv last, and relabel writes relabel.json last.
            if not (teachers[-1] / "oof.csv").is_file():
                n_trainings = n_left + 1 - number
                self.train_one(current_table, current_soft, teachers[-1], n_trainings, boxes)
            if not (labels / "relabel.json").is_file():
                result = relabel(
                    teachers[-plan.teachers :],
                    self.audio,
                    labels,
                    number=number,
                    table=table,
                    boxes=boxes if plan.method(number) == "windows" else None,
                    plan=plan,
                    **runtime_options,
                )
                print(result, flush=True)
            current_table = labels / "table.csv"
            current_soft = labels / "soft.csv"
        return current_table, current_soft

    def first_table(self, table: Path, folder: Path) -> Path:
        """The table of the first training.

        If the method `agreement` ranks noisy clips, it is curated.csv, without their labels: a model that was
        trained on a wrong label would agree with it. If all clips are noisy, their labels are all there is.
        """
        plan = self.recipe.self_training
        if not plan.iterations or plan.method(1) != "agreement":
            return table
        frame = read_clip_table(table)
        rows = noisy_rows(frame, plan)
        if len(rows) == len(frame):
            return table
        curated = folder / "curated.csv"
        write_text(curated, self.table_text(forget_labels(frame, rows)))
        return curated

    def table_text(self, frame: Any) -> str:
        """A table with its folds, as the CSV of a run."""
        return run_files(self.recipe, frame, np.asarray(frame["fold"]))["folds.csv"]


def self_train(
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
    corrections: str | Path | None = None,
    train: Callable[..., Run] = train_run,
    **options: Any,
) -> Run:
    """Train a recipe with the iterations of its self_training. The last run is in `out`.

    Takes train_run's parameters, and `corrections`, a JSON or CSV with new labels. Without iterations and
    corrections it is train_run. Iteration k trains in rounds/k, from scratch, on rounds/k/labels: the corrected
    table, relabelled by the runs before it. Each training gets an equal share of the time to the deadline.
    With purity=strict, each fold's last run has teachers of its own, in strict/fold_f, trained without the fold.
    Errors: as train_run and relabel; KitError for a folder of another self-training, and for strict purity
            with less than 3 folds
    """
    check_recipe(recipe)
    plan = recipe.self_training
    if not plan.iterations and corrections is None:
        return train(
            recipe,
            table,
            audio,
            out,
            only_folds,
            group_column,
            boxes=boxes,
            soft=soft,
            all_data=all_data,
            deadline=deadline,
            **options,
        )
    folder = Path(out)
    rounds = folder / "rounds"
    box_labels = read_box_files(boxes)
    frame = read_training_table(table, box_labels)
    frame = frame.assign(fold=choose_folds(frame, recipe, group_column))
    if corrections is not None:
        frame = apply_corrections(frame, read_corrections(corrections))
    is_strict = plan.iterations > 0 and plan.purity == "strict" and not all_data

    label_files = [path for path in (*(boxes or ()), soft) if path is not None]
    write_rounds(rounds, run_files(recipe, frame, np.asarray(frame["fold"]), label_files))
    if not is_strict:
        check_last_run(folder, recipe, frame, box_labels)
    box_files = [Path(path) for path in boxes] if boxes else None
    soft_file = write_no_soft_labels(rounds, frame, box_labels) if soft is None else Path(soft)

    clock = None if deadline is None else set_deadline(deadline)
    job = SelfTraining(recipe, audio, clock, train, options)
    if is_strict:
        return self_train_strict(job, frame, folder, only_folds, box_files, soft_file)
    first_table = rounds / "folds.csv"
    n_trainings = plan.iterations + 1
    last_table, last_soft = job.train_teachers(first_table, soft_file, rounds, n_trainings, box_files)
    return job.train_one(
        last_table, last_soft, folder, 1, box_files, only_folds=only_folds, all_data=all_data
    )


def write_rounds(rounds: Path, files: Mapping[str, str]) -> None:
    """Write the texts that identify a self-training. Errors: KitError if the folder has others"""
    for name in ("folds.csv", "recipe.json", "labels.json"):
        path = rounds / name
        text = files.get(name, "")
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise KitError(f"{path} belongs to another self-training: choose another --out.")
        write_text(path, text)


def check_last_run(folder: Path, recipe: Recipe, frame: Any, boxes: Boxes | None) -> None:
    """Raise KitError now if the last training would find a run of another recipe in its folder."""
    last = recipe if boxes is None else with_bands(recipe, boxes)
    files = run_files(last, frame, np.asarray(frame["fold"]))
    check_run(folder, {"recipe.json": files["recipe.json"]})


def write_no_soft_labels(rounds: Path, frame: Any, boxes: Boxes | None) -> Path:
    """Write soft labels of no clip, which name all classes: a relabelled table may lack some of them."""
    classes = clip_labels(frame).classes if boxes is None else boxes.classes
    path = rounds / "soft.csv"
    write_soft_labels(path, SoftLabels((), classes, np.zeros((0, len(classes)))))
    return path


def self_train_strict(
    job: SelfTraining,
    frame: Any,
    folder: Path,
    only_folds: Sequence[int] | None,
    boxes: BoxFiles,
    soft: Path,
) -> Run:
    """Train each fold with teachers that never used a clip of it, and join the folds to one run."""
    folds = np.asarray(frame["fold"])
    n_folds = len(np.unique(folds[folds >= 0]))
    selected = select_folds(folds, only_folds)
    if n_folds < 3:
        raise KitError(f"strict purity needs 3 folds or more, the table has {n_folds}.")
    n_trainings = job.recipe.self_training.iterations + 1
    parts: list[tuple[np.ndarray, OofPredictions]] = []
    for done, fold in enumerate(selected):
        rows = np.flatnonzero(folds == fold)
        n_left = (len(selected) - done) * n_trainings
        run = train_strict_fold(job, frame, rows, fold, folder, n_left, boxes, soft)
        if run.oof is not None:
            parts.append((rows, run.oof))
        for path in sorted(run.folder.glob("fold_*.pt")):
            save_tagger(folder / path.name, load_tagger(path))
    for name, text in run_files(job.recipe, frame, folds).items():
        write_text(folder / name, text)
    oof = join_folds(parts)
    write_oof(folder, oof)
    return Run(folder, job.recipe, oof)


def train_strict_fold(
    job: SelfTraining,
    frame: Any,
    rows: np.ndarray,
    fold: int,
    folder: Path,
    n_left: int,
    boxes: BoxFiles,
    soft: Path,
) -> Run:
    """Train the teachers of a fold without its rows, then its last run, which needs them for validation only."""
    import pandas

    home = folder / "strict" / f"fold_{fold}"
    held_out = frame.iloc[rows]
    others = frame.drop(index=frame.index[rows])
    write_text(home / "table.csv", job.table_text(others))
    other_boxes = None if boxes is None else boxes_without(boxes, set(held_out["fname"]), home)
    table, soft = job.train_teachers(home / "table.csv", soft, home, n_left, other_boxes)
    # Columns that relabelling added are filled for the held-out clips with what a missing column means.
    defaults = {"false_labels": ALL_OTHERS, "weight": 1.0, "source": "", "begin_s": 0.0, "end_s": np.inf}
    both = pandas.concat([read_clip_table(table), held_out], ignore_index=True).fillna(defaults)
    write_text(home / "student.csv", job.table_text(both))
    n_left -= job.recipe.self_training.iterations
    return job.train_one(home / "student.csv", soft, home / "student", n_left, boxes, only_folds=[fold])


def boxes_without(boxes: Sequence[Path], recordings: Collection[str], folder: Path) -> list[Path]:
    """Write the two box files without those of some recordings."""
    paths = [folder / "true_boxes.csv", folder / "false_boxes.csv"]
    for path, source in zip(paths, boxes, strict=True):
        table = read_table(source, ("recording_id",))
        header = list(table.columns)
        rows = zip(*table.columns.values(), strict=True)
        names = table.columns["recording_id"]
        kept = [row for row, name in zip(rows, names, strict=True) if name not in recordings]
        write_rows(path, [header, *kept])
    return paths
