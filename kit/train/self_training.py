"""Self-training: train, relabel, train again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.clock import Deadline, process_start, set_deadline
from kit.core.errors import KitError
from kit.core.files import read_table, write_rows, write_text
from kit.labels.boxes import read_boxes
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import ALL_OTHERS, apply_corrections, clip_labels, read_clip_table, read_corrections
from kit.models.checkpoint import load_tagger, save_tagger
from kit.train.dataset import box_table
from kit.train.oof import join_folds, write_oof
from kit.train.pseudo_labels import forget_labels, noisy_rows
from kit.train.recipe import Recipe, check_recipe
from kit.train.relabel import relabel
from kit.train.run import Run, check_run, choose_folds, run_files, train_run, with_bands

BoxFiles = list[Path] | None


@dataclass(frozen=True)
class SelfTraining:
    """What all trainings of some rounds share; `words` go to train_run."""

    recipe: Recipe
    audio: str | Path
    clock: Deadline | None
    train: Callable[..., Run]
    words: Mapping[str, Any]

    def learn(self, table: Path, soft: Path, out: Path, left: int, boxes: BoxFiles, **more: Any) -> Run:
        """One training, with an equal part of the time for each of those `left`."""
        clock = self.clock
        until = clock and clock.now() + clock.left_s() / left - process_start()
        more |= {"soft": soft, "boxes": boxes, "deadline": until, **self.words}
        return self.train(self.recipe, table, self.audio, out, **more)

    def predict_pseudo_labels(
        self, table: Path, soft: Path, home: Path, left: int, boxes: BoxFiles
    ) -> tuple[Path, Path]:
        """The table and soft labels by which the last student learns, after its teachers."""
        plan, current = self.recipe.self_training, table
        if plan.iterations and plan.method(1) == "agreement":
            frame = read_clip_table(table)
            if len(rows := noisy_rows(frame, plan)) < len(frame):
                current = home / "curated.csv"
                write_text(current, self.table_text(forget_labels(frame, rows)))
        heard = {k: v for k, v in self.words.items() if k in ("device", "threads", "progress")}
        for number in range(1, plan.iterations + 1):
            teachers, labels = [home / str(r) for r in range(number)], home / str(number) / "labels"
            if not (teachers[-1] / "oof.csv").is_file():  # what a training writes last
                self.learn(current, soft, teachers[-1], left + 1 - number, boxes)
            if not (labels / "relabel.json").is_file():  # and a relabelling
                own = boxes if plan.method(number) == "windows" else None
                told = {"number": number, "table": table, "boxes": own, "plan": plan, **heard}
                print(relabel(teachers[-plan.teachers :], self.audio, labels, **told), flush=True)
            current, soft = labels / "table.csv", labels / "soft.csv"
        return current, soft

    def table_text(self, frame: Any) -> str:
        """A table with its folds as the CSV of a run."""
        return run_files(self.recipe, frame, np.asarray(frame["fold"]))["folds.csv"]


def self_train(
    recipe: Recipe, table: str | Path | None, audio: str | Path, out: str | Path,
    only_folds: Sequence[int] | None = None, group_column: str | None = None,
    boxes: Sequence[str | Path] | None = None, soft: str | Path | None = None, all_data: bool = False,
    deadline: str | float | None = None, corrections: str | Path | None = None,
    train: Callable[..., Run] = train_run, **words: Any,
) -> Run:  # fmt: skip
    """As train_run, whose words it takes, after the recipe's rounds of relabelling: the last student's run is `out`.

    Round r learns in rounds/r, from scratch, by rounds/r/labels, which the round before gave to the table as it was,
    `corrections` apart. Where round 1 keeps by agreement, round 0 learns no noisy_sources clip's label, so that models of
    curated clips alone rank them, unless all are noisy_sources. With purity strict each fold's student has teachers of its
    own, in strict/fold_f, on a table without that fold. Trainings have equal parts of the time to a deadline.
    Errors: as train_run and relabel; KitError for a folder of other rounds, and strict purity of less than 3 folds
    """
    check_recipe(recipe)
    plan, home = recipe.self_training, Path(out) / "rounds"
    if not plan.iterations and corrections is None:
        words |= {"boxes": boxes, "soft": soft, "all_data": all_data, "deadline": deadline}
        return train(recipe, table, audio, out, only_folds, group_column, **words)
    given = [Path(path) for path in boxes] if boxes else None
    read = read_boxes(given[0], given[1]) if given else None
    frame = box_table(read, table) if read else read_clip_table("" if table is None else table)
    frame = frame.assign(fold=choose_folds(frame, recipe, group_column))
    if corrections is not None:
        frame = apply_corrections(frame, read_corrections(corrections))
    files = run_files(recipe, frame, np.asarray(frame["fold"]), [*(given or ()), *([soft] if soft else ())])
    for name in ("folds.csv", "recipe.json", "labels.json"):
        path, text = home / name, files.get(name, "")
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise KitError(f"{path} tells of other rounds: choose another --out.")
        write_text(path, text)
    strict = plan.iterations and plan.purity == "strict" and not all_data
    if not strict:
        last = with_bands(recipe, read) if read else recipe
        check_run(
            Path(out), {"recipe.json": run_files(last, frame, np.asarray(frame["fold"]))["recipe.json"]}
        )
    told = Path(soft or home / "soft.csv")
    if soft is None:  # so that all know all classes, whatever labels a round leaves
        classes = read.classes if read else clip_labels(frame).classes
        write_soft_labels(told, SoftLabels((), classes, np.zeros((0, len(classes)))))
    job = SelfTraining(recipe, audio, None if deadline is None else set_deadline(deadline), train, words)
    if strict:
        return self_train_strict(job, frame, Path(out), only_folds, given, told)
    current, told = job.predict_pseudo_labels(home / "folds.csv", told, home, plan.iterations + 1, given)
    return job.learn(current, told, Path(out), 1, given, only_folds=only_folds, all_data=all_data)


def self_train_strict(
    job: SelfTraining, frame: Any, folder: Path, only_folds: Sequence[int] | None, boxes: BoxFiles, soft: Path
) -> Run:
    """A student per fold, by teachers that never met a clip of it; together one run in the folder."""
    import pandas

    folds, rounds, parts = np.asarray(frame["fold"]), job.recipe.self_training.iterations, []
    there = {*folds[folds >= 0].tolist()}
    wanted = sorted(there if only_folds is None else {*only_folds})
    if len(there) < 3 or not {*wanted} <= there:
        needs = f"needs them, and 2 others, in the table of {sorted(there)}"
        raise KitError(f"strict purity of folds {wanted} {needs}.")
    for done, fold in enumerate(wanted):
        own, home = folds == fold, folder / "strict" / f"fold_{fold}"
        left = (len(wanted) - done) * (rounds + 1)
        write_text(home / "table.csv", job.table_text(frame[~own]))
        less = boxes and boxes_without(boxes, {*frame["fname"][own]}, home)
        current, told = job.predict_pseudo_labels(home / "table.csv", soft, home, left, less)
        whole = {"false_labels": ALL_OTHERS, "weight": 1.0, "source": "", "begin_s": 0.0, "end_s": np.inf}
        both = pandas.concat([read_clip_table(current), frame[own]], ignore_index=True).fillna(whole)
        write_text(home / "student.csv", job.table_text(both))
        run = job.learn(home / "student.csv", told, home / "student", left - rounds, boxes, only_folds=[fold])
        parts += [(np.flatnonzero(own), run.oof)] if run.oof else []
        for path in sorted(run.folder.glob("fold_*.pt")):
            save_tagger(folder / path.name, load_tagger(path))
    for name, text in run_files(job.recipe, frame, folds).items():
        write_text(folder / name, text)
    result = join_folds(parts)
    write_oof(folder, result)
    return Run(folder, job.recipe, result)


def boxes_without(boxes: Sequence[Path], recordings: Collection[str], home: Path) -> list[Path]:
    """The two files of boxes without those of some recordings."""
    paths = [home / "true_boxes.csv", home / "false_boxes.csv"]
    for path, source in zip(paths, boxes, strict=True):
        columns = read_table(source, ("recording_id",)).columns
        rows = zip(columns["recording_id"], *columns.values(), strict=True)
        write_rows(path, [[*columns], *(row for name, *row in rows if name not in recordings)])
    return paths
