"""A run's folder in, what it says of itself out: its recipe, its epochs, its predictions and their truth."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.csvtext import read_table
from kit.core.errors import KitError
from kit.labels.table import clip_labels, read_clip_table, scored_truth


@dataclass(frozen=True)
class RunOnDisk:
    """A run as its folder tells it: a table of epochs per training; clips by name.

    Shape:  folds (n,), truth and scores (n, K)
    """

    folder: Path
    recipe: dict[str, Any]
    history: list[Any]
    names: list[str]
    classes: list[str]
    folds: np.ndarray
    truth: np.ndarray
    scores: np.ndarray


def open_run(folder: str | Path, labels: Path | None = None) -> RunOnDisk:
    """What a run's or a stack's folder holds so far; its truth is its own table's, or that of `labels`.

    Errors: KitError for a folder that is neither
    """
    import pandas

    folder = Path(folder)
    if not (folder / "folds.csv").is_file():
        raise KitError(f"{folder} holds no run (no folds.csv): give what `train` or `stack` wrote.")
    path, history = folder / "recipe.json", []
    recipe = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (folder / "history.csv").is_file():
        epochs = pandas.read_csv(folder / "history.csv", dtype={"fold": str})
        by = [name for name in ("fold", "seed") if name in epochs]  # older files lack seed and seconds
        history = [rows for _, rows in epochs.groupby(by, sort=False)]
    if not (folder / "oof.csv").is_file():
        return RunOnDisk(folder, recipe, history, [], [], *np.zeros((3, 0, 0)))
    table, oof = read_clip_table(labels or folder / "folds.csv"), read_table(folder / "oof.csv", exact=True)
    if "end_s" in table:  # stretches have no predictions of their own
        table = table[np.isinf(table["end_s"])]
    fnames, folds, *classes = oof.columns
    order = np.argsort(oof.columns[fnames])
    names = [oof.columns[fnames][i] for i in order]
    place = {name: i for i, name in enumerate(table["fname"])}
    truth = scored_truth(clip_labels(table, classes), recipe.get("sources", {}))
    truth = truth[[place[name] for name in names]]
    homes, scores = (np.array([oof.numbers(n) for n in some]).T[order] for some in ([folds], classes))
    return RunOnDisk(folder, recipe, history, names, classes, homes[:, 0].astype(int), truth, scores)
