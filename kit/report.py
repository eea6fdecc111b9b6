"""Run folders in, one table that lays them side by side, and their learning curves, out."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.infer.checkpoint import read_checkpoint
from kit.labels.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from kit.labels.class_metrics import top1_accuracy
from kit.labels.metrics import lwlrap, lwlrap_per_class
from kit.learn.journal import RunOnDisk, open_run
from kit.learn.train import flat_settings
from kit.pictures.runs import draw_history


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


def facts_of(run: RunOnDisk, first: RunOnDisk) -> dict[str, str]:
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
        facts |= {"parameters": f"{sum(sizes):,}", "scores are": card.score}
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


def show(runs: Sequence[str | Path], out: str | Path | None = None, hardest: int = 5) -> RunsReport:
    """Lay runs side by side: scores with 0.95 intervals, costs, the settings that differ, the hardest classes.

    Options:
        runs: folders that `train` or `stack` wrote, finished or not
        out: the picture of their learning curves to draw, e.g. curves.png
        hardest: how many classes to list, the least precise first
    """
    opened = [open_run(Path(run)) for run in runs]
    if out is not None:
        draw_history(opened).save(out)
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
