"""A run in, pictures of its predictions out of fold out: class by class, mistaken, calibrated."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kit.core.errors import KitError
from kit.labels.bootstrap import Interval, percentile_interval
from kit.labels.metrics import true_precisions
from kit.learn.journal import RunOnDisk
from kit.pictures.figure import MOST_ROWS, Drawing, draw_matrix, new_figure, new_rows, shown_name


def hardest_classes(run: RunOnDisk) -> tuple[list[int], str]:
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


def draw_classes(run: RunOnDisk) -> Drawing:
    """The lwlrap of each class out of fold, with its 0.95 interval, and its number of clips, the hardest first."""
    shown, title = hardest_classes(run)
    clips = (run.truth == 1).sum(axis=0)
    value, *reach = with_reach(class_intervals(run.truth, run.scores, shown))
    figure, (axes,) = new_rows([f"{run.classes[k]}  {clips[k]}" for k in shown], 8)
    axes.errorbar(value, range(len(shown)), xerr=reach, fmt="o", capsize=3)
    axes.set(xlim=(0, 1.02), xlabel="lwlrap and its 0.95 interval", ylabel="class and its clips", title=title)
    return Drawing(figure)


def mistaken_beliefs(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The mean score of a column's class where it is known false and the row's is true; NaN for no such clip.

    Shape: truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K, K)
    """
    true, false = (truth == 1).astype(float), (truth == 0).astype(float)
    with np.errstate(invalid="ignore"):
        return np.asarray((true.T @ (scores * false)) / (true.T @ false))


def draw_confusion(run: RunOnDisk) -> Drawing:
    """The mean probability of a column's class on the clips where it is known false and the row's class is true."""
    shown, title = hardest_classes(run)
    names = [run.classes[k] for k in shown]
    figure, (axes,) = new_rows(names, 4.5 + 0.15 * len(shown))
    draw_matrix(axes, mistaken_beliefs(run.truth, run.scores)[np.ix_(shown, shown)], names)
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


def draw_calibration(run: RunOnDisk) -> Drawing:
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
