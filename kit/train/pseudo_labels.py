"""Pseudo-labels: how a table is relabeled by out-of-fold predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from kit.core.config import Config, setting
from kit.core.errors import KitError, choose
from kit.labels.boxes import Boxes, window_targets
from kit.labels.metrics import label_precisions
from kit.labels.soft import SoftLabels, align_soft_labels, fill_unknown
from kit.labels.table import ALL_OTHERS, clip_labels

PURITY = {
    "plain": "A clip's labels come only from models that held it out. Second order: these may have learnt from "
    "others' labels by models that knew it; so were keep=best and calibration.",
    "strict": "No model of these teachers learnt from, or was chosen or fitted by, their student's held-out fold.",
}


class RelabeledTable(NamedTuple):
    """A clip table with new labels, soft ones for what is unknown, and counts."""

    frame: Any
    soft: SoftLabels
    counts: dict[str, int]


def correct_by_boxes(soft: SoftLabels, boxes: Boxes) -> SoftLabels:
    """Soft labels of windows, true or false where boxes say so. Source: second place, RFCX"""
    if boxes.classes != soft.classes:
        raise KitError(f"boxes of {len(boxes.classes)} classes, runs of {len(soft.classes)}: use these.")
    known = np.full_like(soft.targets, np.nan)
    for name, rows in soft.rows.items():
        known[rows] = window_targets(boxes, name, *(t[rows] for t in soft.times))
    return replace(soft, targets=fill_unknown(known, soft.targets))


def agreement_order(targets: np.ndarray, beliefs: np.ndarray) -> np.ndarray:
    """Clips from the one whose labels beliefs bear out best to the worst, those without beliefs last.

    By the mean precision of its true labels (1 without any), as lwlrap ranks; ties, which are many, by the mean log
    loss of its known labels, which needs calibrated beliefs.
    Shape:  targets (n, K) of 1, 0 or NaN, beliefs (n, K), NaN where unheard -> (n,) places
    Source: third place, Freesound 2019, for ranking by agreement; this measure of it is ours
    """
    unheard, known, true = np.isnan(beliefs).any(axis=1), ~np.isnan(targets), targets == 1
    p = np.nan_to_num(beliefs.astype(np.float64)).clip(1e-7, 1 - 1e-7)
    loss = -np.where(known, np.log(np.where(true, p, 1 - p)), 0).sum(1) / known.sum(1).clip(1)
    precision = label_precisions(true, known, p).sum(1) / true.sum(1).clip(1)
    return np.lexsort((loss, -np.where(true.any(1), precision, 1), unheard))


def snr_ratio(beliefs: np.ndarray, k: int) -> np.ndarray:
    """The share of a window's k greatest activations. Shape: (W, K) -> (W,)"""
    return np.asarray(np.sort(beliefs)[:, ::-1][:, :k].sum(1) / beliefs.sum(1).clip(1e-30))


def confident_labels(beliefs: np.ndarray, classes: Sequence[str], k: int) -> str:
    """The classes among the k greatest that reach half of the greatest. Shape: beliefs (K,)"""
    best = np.argsort(-beliefs, kind="stable")[:k]
    return ",".join(classes[i] for i in sorted(best) if beliefs[i] >= beliefs.max() / 2)


def pick_soft(soft: SoftLabels, rows: Any) -> SoftLabels:
    """Some of the soft labels. Shape: rows (m,) places, or (n,) bool"""
    rows = np.arange(len(soft.names))[rows]
    names = tuple(soft.names[i] for i in rows)
    return SoftLabels(names, soft.classes, soft.targets[rows], *(t[rows] for t in soft.times))


def noisy_rows(frame: Any, plan: "SelfTrainingConfig") -> np.ndarray:
    """The rows whose labels may go. Errors: KitError where there are none, or no fold holds one out"""
    named = "source" in frame and plan.noisy_sources
    own = np.isin(frame["source"], plan.noisy_sources) if named else np.ones(len(frame), bool)
    if not own.any():
        there = sorted({*frame["source"]})
        raise KitError(f"no clip is of a source in noisy_sources={[*plan.noisy_sources]}, but of {there}.")
    if (choose("column", "fold", frame)[own] < 0).any():
        raise KitError("noisy_sources clips lie in fold -1, so every model learnt from them.")
    return np.flatnonzero(own)


def forget_labels(frame: Any, rows: np.ndarray) -> Any:
    """The table with some rows' labels unknown, the others as complete as they were."""
    frame = frame.copy() if "false_labels" in frame else frame.assign(false_labels=ALL_OTHERS)
    frame.loc[rows, ["labels", "false_labels"]] = ""
    return frame


def noisy_windows(frame: Any, soft: SoftLabels, plan: "SelfTrainingConfig") -> tuple[SoftLabels, np.ndarray]:
    """The soft windows of noisy_sources clips, and the row of each one's clip."""
    place = {frame["fname"][i]: i for i in noisy_rows(frame, plan)}
    own = pick_soft(soft, [name in place for name in soft.names])
    return own, np.array([place[name] for name in own.names], np.int64)


def add_windows(frame: Any, home: np.ndarray, soft: SoftLabels, **columns: Any) -> Any:
    """The table, and a row per window, as its clip's, `home`, but for some columns."""
    import pandas

    begin, end = (t.round(6) for t in soft.times)
    rows = frame.iloc[home].assign(begin_s=begin, end_s=end, **columns)
    return pandas.concat([frame, rows], ignore_index=True)


def fill_plain(frame: Any, soft: SoftLabels, plan: "SelfTrainingConfig", number: int) -> RelabeledTable:
    """The teachers' mean fills unknown labels, of clips or of windows."""
    unknown = np.isnan(clip_labels(frame, soft.classes).targets).any(axis=1) | bool(soft.times)
    told = pick_soft(soft, np.isin(soft.names, frame["fname"][unknown]))
    if not told.names:
        raise KitError("no predicted clip has an unknown label: give false_labels, or use agreement.")
    return RelabeledTable(frame, told, {"filled": len(told.rows)})


def keep_agreeing(frame: Any, soft: SoftLabels, plan: "SelfTrainingConfig", number: int) -> RelabeledTable:
    """Doubted clips that agree best keep their labels; others are unknown, past the last of top_k predicted.

    Source: third place, Freesound 2019 (the best 1k, 2k ... 5k with their labels, then all others with predictions)
    """
    rows = noisy_rows(frame, plan)
    beliefs = align_soft_labels(soft, frame["fname"][rows], soft.classes)
    kept = plan.best_count(number, len(rows))
    others = rows[agreement_order(clip_labels(frame, soft.classes).targets[rows], beliefs)[kept:]]
    told = pick_soft(soft, np.isin(soft.names, frame["fname"][others]) & (number > len(plan.top_k)))
    counts = {"kept": kept, "predicted": len(told.names), "left_out": len(others) - len(told.names)}
    return RelabeledTable(forget_labels(frame, others), told, counts)


def make_snr_sets(frame: Any, soft: SoftLabels, plan: "SelfTrainingConfig", number: int) -> RelabeledTable:
    """Doubted clips become two sets. Set 1: windows of the highest ratio, labelled by their most confident classes,
    others false. Set 2: whole clips, softly labelled by the mean activation of their windows in set 1.

    Source: signal-to-noise pseudo labels, Freesound 2019
    """
    own, home = noisy_windows(frame, soft, plan)
    order = np.argsort(-snr_ratio(own.targets, plan.snr_k), kind="stable")
    chosen = np.sort(order[: plan.best_count(number, len(order))])
    if not len(chosen):
        raise KitError(f"top_k={[*plan.top_k]} picks none of {len(order)} windows: try top_k=[0.1].")
    best, clips = pick_soft(own, chosen), np.unique(home[chosen])
    labels = [confident_labels(row, soft.classes, plan.snr_k) for row in best.targets]
    frame = forget_labels(frame, np.unique(home))
    frame = add_windows(frame, home[chosen], best, source="set1", labels=labels, false_labels=ALL_OTHERS)
    frame.loc[clips, "source"] = "set2"
    means = np.stack([best.targets[rows].mean(axis=0) for rows in best.rows.values()])
    counts = {"set1": len(chosen), "set2": len(clips), "left_out": len({*home}) - len(clips)}
    return RelabeledTable(frame, SoftLabels(tuple(best.rows), soft.classes, means), counts)


def curate_windows(frame: Any, soft: SoftLabels, plan: "SelfTrainingConfig", number: int) -> RelabeledTable:
    """Windows whose most probable known class is true of their clip become rows like it.

    Their clips become source `whole`, which a share of 0 keeps for predictions and scores alone.
    Source: two-stage systems, Freesound 2019 (out-of-fold models curate windows)
    """
    own, home = noisy_windows(frame, soft, plan)
    truth = clip_labels(frame, soft.classes).targets[home]
    best = np.where(np.isnan(truth), -1, own.targets).argmax(axis=1)
    match = truth[np.arange(len(truth)), best] == 1
    frame = add_windows(frame, home[match], pick_soft(own, match))
    frame.loc[np.unique(home), "source"] = "whole"
    return RelabeledTable(
        frame, pick_soft(soft, []), {"kept": int(match.sum()), "left_out": int((~match).sum())}
    )


RELABEL_METHODS: dict[str, Callable[[Any, SoftLabels, "SelfTrainingConfig", int], RelabeledTable]] = {
    "plain": fill_plain, "windows": fill_plain, "agreement": keep_agreeing, "snr": make_snr_sets,
    "curate": curate_windows,
}  # fmt: skip


@dataclass(frozen=True)
class SelfTrainingConfig(Config):
    """How held-out predictions become the next round's labels."""

    iterations: int = setting(0, "students, each by labels of the one before", low=0)
    methods: tuple[str, ...] = setting(
        ("plain",), "what each round does; the last, all later ones", choices=tuple(RELABEL_METHODS)
    )
    purity: str = setting("plain", "strict: a teacher chain per fold", choices=tuple(PURITY))
    noisy_sources: tuple[str, ...] = setting(
        ("noisy",), "sources whose labels may go; none, or none there: all"
    )
    top_k: tuple[float, ...] = setting((), "best clips or windows of each round, a share or a count", low=0)
    snr_k: int = setting(3, "classes that are a window's signal", low=1)
    hop_s: float = setting(0.5, "seconds between windows", low=0.01)
    power: float = setting(1.0, "exponent on soft labels", low=0.01, high=100)
    teachers: int = setting(1, "last rounds whose students teach", low=1)
    prior_shift: bool = setting(False, "fit beliefs to how frequent classes are here")
    weigh: bool = setting(False, "clips with soft labels alone weigh their sum")

    def method(self, number: int) -> str:
        """What a round does, counted from 1."""
        return self.methods[min(number, len(self.methods)) - 1] if self.methods else "plain"

    def best_count(self, number: int, n: int) -> int:
        """How many of n a round counts as best."""
        k = self.top_k[min(number, len(self.top_k)) - 1] if self.top_k else 0.0
        return min(n, round(k * n) if k <= 1 else int(k))


def weigh_by_confidence(frame: Any, soft: SoftLabels) -> Any:
    """Clips with soft labels alone weigh the sum of each class's greatest, 1 in their mean.

    Source: BirdCLEF 2024 and 2025 (pseudo labels sampled by their sum)
    """
    told = {name: float(np.nan_to_num(soft.targets[rows]).max(0).sum()) for name, rows in soft.rows.items()}
    unknown = np.isnan(clip_labels(frame, soft.classes).targets).all(axis=1)
    sums = frame["fname"].map(told).where(unknown)
    return frame.assign(weight=(sums / sums.mean()).clip(lower=1e-3).fillna(frame.get("weight", 1.0)))
