"""Run folders or a submission in, a table that tells of them, pictures and a page out."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.infer.job import read_report
from kit.labels.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from kit.labels.metrics import lwlrap, lwlrap_per_class, top1_accuracy
from kit.labels.table import read_clip_table
from kit.models.checkpoint import read_checkpoint
from kit.plots.figure import SAVED_AS, Drawing, page_picture, page_table, write_page
from kit.plots.labels import draw_labels
from kit.plots.runs import (
    draw_calibration,
    draw_classes,
    draw_confusion,
    draw_history,
    draw_self_training,
    draw_timeline,
)
from kit.train.oof import SavedRun, load_run
from kit.train.run import flat_settings

LISTED = ("files_failed", "notes", "files_without_row", "rows_without_file", "files_split")


@dataclass(frozen=True)
class RunsReport:
    """Runs side by side. Shape: in each row its name, then a text per run"""

    runs: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        table = [("", *self.runs), *self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)

    __repr__ = __str__


def worded(measure: Callable[..., Any], *given: Any) -> str:
    """A number, and its interval, as text; a dash where there is none."""
    try:
        found = measure(*given)
    except KitError:
        return "-"
    if isinstance(found, Interval):
        return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
    return f"{found:.4f}"


def facts_of(run: SavedRun, first: SavedRun) -> dict[str, str]:
    """What there is to say of a run by name: scores, alone and against the first's, and costs."""
    truth, scores, facts = run.truth, run.scores, {"lwlrap": "not yet"}
    if run.names:
        facts["lwlrap"] = worded(bootstrap_interval, lwlrap, truth, scores)
        if (truth.sum(axis=1) == 1).all():  # unknown labels make no sum
            facts["top-1"] = worded(top1_accuracy, truth, scores)
    if run is not first and run.names:
        same = run.names == first.names and run.classes == first.classes
        same = same and np.array_equal(truth, first.truth, equal_nan=True)
        gain = worded(bootstrap_difference, lwlrap, truth, scores, first.scores) if same else ""
        facts["against the first"] = gain or "other clips or labels"
    facts["clips"] = str(len(run.names))
    if run.history:
        done = " ".join(str(epochs["epoch"].iloc[-1]) for epochs in run.history)
        spent = sum(epochs["seconds"].sum() for epochs in run.history if "seconds" in epochs)
        facts["epochs"] = f"{done} of {run.recipe.get('epochs', '?')}"
        facts["minutes"] = f"{spent / 60:.1f}" if spent else "not told"
    for path in sorted(run.folder.glob("fold_*.pt")):
        card, tensors = read_checkpoint(path)
        sizes = [t.numel() for n, t in tensors.items() if t.is_floating_point() and "running_" not in n]
        facts |= {"parameters": f"{sum(sizes):,}", "scores are": card.output}
        if card.oof_score is not None:
            facts[f"fold {card.fold}"] = f"{card.oof_score:.4f}"
    for fold in np.unique(run.folds):
        facts[f"fold {fold}"] = worded(lwlrap, truth[run.folds == fold], scores[run.folds == fold])
    if (truth == 1).any():
        precision, weight = lwlrap_per_class(truth, scores)
        facts |= {f"class {run.classes[k]}": f"{precision[k]:.4f}" for k in np.flatnonzero(weight)}
    return facts


def rows_of(columns: Sequence[dict[str, str]], names: Iterable[str]) -> list[tuple[str, ...]]:
    """A row for each name; a dash where a column lacks it."""
    return [(name, *(column.get(name, "-") for column in columns)) for name in names]


def lay_side_by_side(opened: Sequence[SavedRun], hardest: int) -> RunsReport:
    """Runs as a table."""
    facts = [facts_of(run, opened[0]) for run in opened]
    settings = [{k: json.dumps(v) for k, v in flat_settings(run.recipe).items()} for run in opened]
    named = dict.fromkeys(name for of in sorted(facts, key=len, reverse=True) for name in of)
    means = {n: np.mean([float(of[n]) for of in facts if n in of]) for n in named if n.startswith("class ")}
    told = [of for of in settings if of]
    differing = dict.fromkeys(n for of in told for n in of if len({each.get(n) for each in told}) > 1)
    worst = sorted(means, key=lambda n: (means[n], n))[:hardest]
    rows = rows_of(facts, (n for n in named if n not in means))
    rows += rows_of(settings, differing) + rows_of(facts, worst)
    return RunsReport(tuple(str(run.folder) for run in opened), tuple(rows))


def lay_submission(path: Path, report: Mapping[str, Any]) -> RunsReport:
    """A submission's report as a table: its facts, how many files failed and the like, its models."""
    if "job" not in report:
        raise KitError(f"no report beside {path}: give the CSV that `submit` wrote, or its .json.")
    facts = {name: str(value) for name, value in report.items() if isinstance(value, str | int | float)}
    counts = {name: str(len(report.get(name, ()))) for name in LISTED}
    told = "weight {weight:g}, {network_s:.1f} s for {clips_predicted} clips; failure: {failure}"
    models = [(model["checkpoint"], told.format(**model)) for model in report.get("models", ())]
    return RunsReport((str(path),), (*facts.items(), *counts.items(), *models))


def lists_of(report: Mapping[str, Any]) -> Iterator[str]:
    """What a page lists of a submission."""
    for name in LISTED:
        told = report.get(name, {})
        yield page_table(told.items() if isinstance(told, dict) else zip(told, strict=True), name)


def pieces_of_run(run: SavedRun) -> Iterator[str]:
    """What a page says of one run."""
    yield f"<h2>{escape(run.folder.resolve().name)}</h2>"
    yield page_picture(draw_labels, read_clip_table(run.folder / "folds.csv"))
    yield from (page_picture(draw, run) for draw in (draw_classes, draw_confusion, draw_calibration))
    if (run.folder / "rounds").is_dir():
        yield page_picture(draw_self_training, run.folder)
    yield page_table(flat_settings(run.recipe).items(), "settings")


def show(
    runs: str | Path | Sequence[str | Path], out: str | Path | None = None, hardest: int = 5
) -> RunsReport:
    """Lay runs side by side: scores with 0.95 intervals, costs, the settings that differ, the hardest classes.

    Of a submission it tells what was heard, and the weights and times of its models.

    Options:
        runs: folders that `train` or `stack` wrote, finished or not; or one submission's .csv or .json
        out: report.html, one page with all pictures, or curves.png, the learning curves or a submission's timeline
        hardest: how many classes to list, the least precise first
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    target = None if out is None else Path(out)
    choose("ending of out", target.suffix if target else ".html", {**SAVED_AS, ".html": ""})
    draw: Callable[..., Drawing] = draw_history
    given: Any
    if [path.suffix for path in paths] in ([".csv"], [".json"]):
        draw, given = draw_timeline, read_report(paths[0])
        report, more = lay_submission(paths[0], given), lists_of(given)
    else:
        given = [load_run(path) for path in paths]
        report = lay_side_by_side(given, hardest)
        more = (piece for run in given for piece in pieces_of_run(run))
    if target and target.suffix == ".html":
        pieces = [page_table([("", *report.runs), *report.rows]), page_picture(draw, given), *more]
        write_page(target, ", ".join(path.resolve().name for path in paths), pieces)
    elif target:
        draw(given).save(target)
    return report
