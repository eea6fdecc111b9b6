"""Plots of runs and submissions."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.infer.job import read_report
from kit.labels.bootstrap import Interval, bootstrap_interval, percentile_interval
from kit.labels.metrics import lwlrap, true_precisions
from kit.plots.figure import CURVE_COLOURS, MOST_ROWS, Drawing, draw_matrix, new_figure, new_rows, shown_name
from kit.train.oof import SavedRun, load_run


def hardest_classes(run: SavedRun) -> tuple[list[int], str]:
    """The 40 classes at most that have the least lwlrap out of fold, and what a title says of them.

    Errors: KitError without predictions, or without a true label
    """
    if not run.names:
        raise KitError(f"{run.folder} has no oof.csv yet: let `train` end, or run `oof`.")
    precisions, true = true_precisions(run.truth, run.scores)
    clips = true.sum(axis=0)
    order = np.argsort(precisions.sum(axis=0) / clips.clip(1), kind="stable")
    shown = [int(k) for k in order if clips[k]][:MOST_ROWS]
    return (
        shown,
        f"{shown_name(run.folder.resolve().name)}: {len(shown)} of {len(clips)} classes, hardest first",
    )


def class_intervals(truth: np.ndarray, scores: np.ndarray, classes: Sequence[int]) -> Iterator[Interval]:
    """The lwlrap of some classes with 0.95 intervals over resamples of clips. Errors: KitError for one clip"""
    precisions, true = true_precisions(truth, scores)
    for k in classes:
        own = true[:, k]

        def statistic(
            counts: np.ndarray, own: np.ndarray = own, told: np.ndarray = precisions[:, k]
        ) -> float:
            return float(counts @ told / n) if (n := counts @ own) else np.nan

        yield percentile_interval(precisions[own, k].mean(), statistic, np.arange(len(own)), 1000, 0.95, 0)


def with_reach(found: Iterable[Interval]) -> np.ndarray:
    """Values, and how far below and above them their intervals reach. Shape: n -> (3, n)"""
    return np.array([(each.value, each.value - each.low, each.high - each.value) for each in found]).T.clip(0)


def draw_classes(run: SavedRun) -> Drawing:
    """The lwlrap of each class out of fold, with its 0.95 interval, and its number of clips, the hardest first."""
    shown, title = hardest_classes(run)
    clips = (run.truth == 1).sum(axis=0)
    value, *reach = with_reach(class_intervals(run.truth, run.scores, shown))
    figure, (axes,) = new_rows([f"{run.classes[k]}  {clips[k]}" for k in shown], 8)
    axes.errorbar(value, range(len(shown)), xerr=reach, fmt="o", capsize=3)
    axes.set(xlim=(0, 1.02), xlabel="lwlrap and its 0.95 interval", ylabel="class and its clips", title=title)
    return Drawing(figure)


def mean_confusion(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The mean score of a column's class where it is known false and the row's is true; NaN for no such clip.

    Shape: truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K, K)
    """
    true, false = (truth == 1).astype(float), (truth == 0).astype(float)
    with np.errstate(invalid="ignore"):
        return np.asarray((true.T @ (scores * false)) / (true.T @ false))


def draw_confusion(run: SavedRun) -> Drawing:
    """The mean probability of a column's class on the clips where it is known false and the row's class is true."""
    shown, title = hardest_classes(run)
    names = [run.classes[k] for k in shown]
    figure, (axes,) = new_rows(names, 4.5 + 0.15 * len(shown))
    draw_matrix(axes, mean_confusion(run.truth, run.scores)[np.ix_(shown, shown)], names)
    axes.set(title=title, ylabel="true", xlabel="false, and believed with a mean probability of")
    return Drawing(figure)


def reliability(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Known labels in ten bins of their probability, without empty ones.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> (5, bins): mean probability, share of true ones, the low and
            the high end of its 0.95 interval, count
    Source: Wilson 1927, for labels that do not depend on each other
    """
    known = ~np.isnan(truth)
    p, true = scores[known].astype(float), truth[known].astype(float)
    bins = (p * 10).astype(int).clip(0, 9)
    there, place, n = np.unique(bins, return_inverse=True, return_counts=True)
    mean, share = (np.bincount(place, of, len(there)) / n for of in (p, true))
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side * spread) / (1 + z * z / n) for side in (-1, 1))
    return np.array([mean, share, low, high, n])


def draw_calibration(run: SavedRun) -> Drawing:
    """How often what has a probability out of fold is true, with 0.95 intervals, and how many labels have it."""
    hardest_classes(run)
    mean, share, low, high, count = reliability(run.truth, run.scores)
    figure, (top, below) = new_figure(6.5, 6, 2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), "--", color="0.5")
    top.errorbar(mean, share, np.maximum(0, (share - low, high - share)), fmt="o-")
    gap = float(count @ np.abs(share - mean) / count.sum())
    top.set(ylabel="share that is true", title=f"{gap:.3f} off on average")
    below.bar(mean, count, 0.05)
    below.set(yscale="log", xlabel="probability", ylabel="known labels")
    return Drawing(figure)


STAGES = {"headers": "read headers", "models": "build models", "decode": "decode", "frontend": "front end"}


def draw_history(runs: Sequence[SavedRun]) -> Drawing:
    """Loss of training and lwlrap of validation over epochs: a colour per run, or per fold of one."""
    figure, pair = new_figure(10, 4, 1, 2)
    for axes, measure in zip(pair, ("loss", "lwlrap"), strict=True):
        drawn: dict[str, Any] = {}
        for folder, epochs in ((run.folder, epochs) for run in runs for epochs in run.history):
            name = shown_name(str(folder) if len(runs) > 1 else f"fold {epochs['fold'].iloc[0]}")
            colour = CURVE_COLOURS[[*drawn, name].index(name) % len(CURVE_COLOURS)]
            rows = epochs.dropna(subset=measure)
            (drawn[name],) = axes.plot(rows["epoch"], rows[measure], ".-", color=colour, alpha=0.8)
        axes.set(xlabel="epoch", ylabel=measure)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(drawn.values(), drawn, frameon=False)
    return Drawing(figure)


def draw_self_training(run: str | Path) -> Drawing:
    """The lwlrap out of fold of each round of relabelling, by the labels as given, and what its labels held."""
    folder, home = Path(run), Path(run) / "rounds"
    paths = {int(path.parts[-3]): path for path in home.glob("*/labels/relabel.json")}
    counts = {r: json.loads(path.read_text(encoding="utf-8"))["counts"] for r, path in sorted(paths.items())}
    last = max(counts, default=0)
    homes = {r: home / str(r) for r in range(last)} | {last: folder}
    there = [r for r in homes if counts and (homes[r] / "oof.csv").is_file()]
    if not there:
        raise KitError(
            f"{folder} holds no rounds (rounds/0/oof.csv): give a run of self_training.iterations > 0."
        )
    opened = [load_run(homes[r], home / "folds.csv") for r in there]
    value, *reach = with_reach(bootstrap_interval(lwlrap, each.truth, each.scores) for each in opened)
    figure, (left, right) = new_figure(10, 4, 1, 2, sharex=True)
    left.errorbar(there, value, reach, fmt="o-", capsize=3)
    left.set(xlabel="round", title="lwlrap and its 0.95 interval", xticks=[*homes])
    for word in dict.fromkeys(word for each in counts.values() for word in each):
        right.plot([*counts], [each.get(word, 0) for each in counts.values()], "o-", label=word)
    right.set(xlabel="round", title="clips or windows in its labels", ylim=(0, None))
    right.legend(frameon=False)
    return Drawing(figure)


def draw_timeline(report: str | Path | Mapping[str, Any]) -> Drawing:
    """When a submission read, decoded, asked each model and wrote, in seconds since its work began.

    Give its CSV, the .json beside it, or a Submission's report. A line is the deadline, where that was near.
    """
    told = report if isinstance(report, Mapping) else read_report(Path(report))
    if "spans" not in told:
        raise KitError("no report that tells when what was done: submit again, with this kit.")
    lanes = [(name, told["spans"].get(stage, [])) for stage, name in STAGES.items()]
    models = sorted(told["models"], key=lambda model: model["spans"][:1])
    lanes += [(model["checkpoint"], model["spans"]) for model in models]
    lanes += [("write CSV", told["spans"].get("write", []))]
    sums = [f"{sum(b - a for a, b in spans):.1f} s  {name}" for name, spans in lanes]
    figure, (axes,) = new_rows(sums, 10)
    for row, (_, spans) in enumerate(lanes):
        colour = CURVE_COLOURS[min(row, len(STAGES))]
        axes.broken_barh([(a, b - a) for a, b in spans], (row - 0.4, 0.8), color=colour)
    title = f"{told['state']}, {told['seconds_total']:.1f} s"
    if limit := told["deadline_s"]:
        title += f" of {limit:.1f} s to the deadline"
        if limit < 2 * told["seconds_total"]:
            axes.axvline(limit, color="k", linestyle="--")
    axes.set(xlabel="seconds", title=title, xlim=(0, None))
    return Drawing(figure)
