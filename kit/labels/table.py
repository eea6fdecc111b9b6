"""Clip tables, their corrections, and target matrices."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, closest
from kit.core.files import TextTable, read_table

ALL_OTHERS = "*"


@dataclass(frozen=True)
class ClipLabels:
    """What is known of every clip: a class is true (1), false (0) or unknown (NaN).

    Shape:  n names, K classes, targets (n, K) float32, weights (n,) float32, sources (n,) of text
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: np.ndarray
    weights: np.ndarray
    sources: np.ndarray


def read_clip_table(path: str | Path) -> Any:
    """A clip table, `fname,labels[,false_labels][,fold][,weight][,source][,begin_s,end_s]`, as a pandas DataFrame.

    All stays text (`000316`, `1e5`, `NA`) but for `fold`, integers, and `weight`, floats. With `begin_s` and
    `end_s` a row is that stretch of its clip, or where both are empty all of it (0 to infinity).
    Empty labels mean a clip without any. With `false_labels`, a class in neither is unknown; `*` there
    makes all others false.
    Errors: KitError that names the line
    """
    import pandas

    table = read_table(path, ("fname", "labels"))
    columns = table.columns
    if not table.lines:
        raise KitError(f"{path} holds no clips: add a line per clip.")
    table.check_names("fname", once="begin_s" not in columns)
    if "begin_s" in columns:
        read_stretches(table)
    if "false_labels" in columns:
        check_one_state(columns["labels"], columns["false_labels"], map(table.at, range(len(table.lines))))
    if "fold" in columns:
        columns["fold"] = table.numbers("fold", "a whole number", lambda fold: abs(fold) < 10**9, int)
    if "weight" in columns:
        columns["weight"] = table.numbers("weight", "a number above 0", lambda weight: 0 < weight < math.inf)
    return pandas.DataFrame(columns)


def read_stretches(table: TextTable) -> None:
    """begin_s and end_s of a clip table become numbers. Errors: KitError for what is no stretch, or stands twice"""
    columns, seen = table.columns, set()
    for name, whole in (("begin_s", 0.0), ("end_s", math.inf)):
        if name not in columns:
            raise KitError(f"{table.path} has begin_s or end_s, not both: give both, empty for a whole clip.")
        columns[name] = [text or str(whole) for text in columns[name]]
        columns[name] = table.numbers(name, "seconds, or an empty cell", lambda t: t >= 0)
    for row, key in enumerate(zip(columns["fname"], columns["begin_s"], columns["end_s"], strict=True)):
        if key in seen or not key[1] < key[2] or (key[1] and key[2] == math.inf):
            raise KitError(
                f"{table.at(row)}: {key} is no stretch, or stands above already: begin_s < end_s, once."
            )
        seen.add(key)


def rows_by_name(names: Iterable[str]) -> dict[str, np.ndarray]:
    """Where each name stands, every place in order. Shape: name -> (places,) int64"""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return {name: np.array(places) for name, places in found.items()}


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of one clip: split at commas, trimmed, empty ones dropped."""
    if not isinstance(text, str):
        raise KitError(f"labels must be text, got {text!r}: read the table with read_clip_table.")
    return tuple(filter(None, map(str.strip, text.split(","))))


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Every class that the labels name, once, sorted by code point."""
    return tuple(sorted({label for text in labels for label in split_labels(text)}))


def classes_of_template(path: str | Path) -> tuple[str, ...]:
    """The class columns of a sample submission: all but the first, which is the id, byte for byte."""
    id_column, *classes = read_table(path, exact=True).columns
    if not classes:
        raise KitError(f"{path} names no classes, only {id_column!r}: its first column is the id.")
    return tuple(classes)


def column_of_class(classes: Sequence[str]) -> dict[str, int]:
    """Where each class stands. Errors: KitError for a class named twice"""
    column = {name: k for k, name in enumerate(classes)}
    if len(column) != len(classes):
        raise KitError(f"{len(classes)} classes have {len(column)} names: remove the repeated ones.")
    return column


def check_one_state(labels: Sequence[str], false_labels: Sequence[str], places: Iterable[str]) -> None:
    """Raise KitError at the first place where a label is both true and false."""
    for true, false, place in zip(labels, false_labels, places, strict=True):
        if both := set(split_labels(true)).intersection(split_labels(false)):
            raise KitError(f"{place}: {min(both)!r} stands in labels and in false_labels: remove one.")


def label_targets(
    labels: Sequence[str], classes: Sequence[str], false_labels: Sequence[str] | None = None
) -> np.ndarray:
    """One where a clip has the label, zero where it is known not to, NaN where that is unknown.

    Without `false_labels` a clip's labels are complete: what it does not list is false. With them,
    only what they list is false, or, where they hold `*`, every class that is not true.

    Shape:  n label texts, K classes, n texts of false labels -> (n, K) float32
    Errors: KitError for labels that are no class, a class named twice, a label both true and false
    """
    column = column_of_class(classes)
    if false_labels is not None:
        check_one_state(labels, false_labels, (f"clip {i}" for i in range(len(labels))))
    targets = np.full((len(labels), len(classes)), 0.0 if false_labels is None else np.nan, np.float32)
    strangers: set[str] = set()
    for state, texts in enumerate((false_labels or (), labels)):
        for i, text in enumerate(texts):
            for label in split_labels(text):
                if label == ALL_OTHERS and not state:
                    targets[i] = 0
                elif label in column:
                    targets[i, column[label]] = state
                else:
                    strangers.add(label)
    if strangers:
        shown = ", ".join(map(repr, sorted(strangers)[:10]))
        told = f"{len(strangers)} labels are none of the {len(classes)} classes: {shown}"
        raise KitError(f"{told}. Correct or add them: {closest(min(strangers), classes)}.")
    return targets


def clip_labels(table: Any, classes: Sequence[str] | None = None) -> ClipLabels:
    """A read table as arrays; weights are 1, sources empty, classes the sorted ones it names, unless given."""
    n, labels = len(table), list(table["labels"])
    false = list(table["false_labels"]) if "false_labels" in table else None
    if classes is None:
        classes = [name for name in class_names([*labels, *(false or ())]) if name != ALL_OTHERS]
    weights = np.asarray(table.get("weight", np.ones(n)), np.float32)
    sources = np.asarray(table.get("source", [""] * n), str)
    targets = label_targets(labels, classes, false)
    return ClipLabels(tuple(table["fname"]), tuple(classes), targets, weights, sources)


def scored_truth(labels: ClipLabels, recipe_sources: Mapping[str, Any]) -> np.ndarray:
    """The labels that validation counts: those of unscored sources are unknown. Shape: -> (n, K)"""
    silent = [name for name, given in recipe_sources.items() if not given["scored"]]
    return np.where(np.isin(labels.sources, silent)[:, None], np.float32(np.nan), labels.targets)


def stretches_of(frame: Any) -> np.ndarray | None:
    """Begin and end of each row's stretch, 0 and infinity for a whole clip, or None. Shape: (n, 2)"""
    if "begin_s" not in frame:
        return None
    return np.asarray(frame[["begin_s", "end_s"]])


def known_prevalences(targets: np.ndarray) -> list[float]:
    """The share of true ones among each class's known labels; that of all classes where none is known.

    Shape:  targets (n, K), NaN where unknown -> K numbers in [0, 1]
    """
    known = (~np.isnan(targets)).sum(axis=0)
    true: Any = np.nansum(targets, axis=0, dtype=np.float64)
    overall = true.sum() / max(1, known.sum())
    return list(np.where(known, true / np.maximum(known, 1), overall).tolist())


def read_corrections(path: str | Path) -> dict[str, str | None]:
    """The new labels of each clip, None to drop it: JSON `{"a.wav": "Bark,Meow", "b.wav": null}`, or CSV
    `fname,labels[,drop]`, where 1 in `drop` drops.

    Source: first place, Freesound 2019 (lists that drop or correct clips which earlier models score badly)
    """
    pairs: Any = []
    if Path(path).suffix.lower() == ".json":
        try:
            pairs = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=list)
        except (OSError, ValueError) as error:
            raise KitError(f"cannot read the corrections {path}: {error}.") from error
    else:
        table = read_table(path, ("fname", "labels"))
        names, labels = table.columns["fname"], table.columns["labels"]
        drops = table.columns.get("drop", [""] * len(names))
        for row, (name, text, drop) in enumerate(zip(names, labels, drops, strict=True)):
            if drop not in ("", "0", "1") or (drop == "1" and text.strip()):
                raise KitError(f"{table.at(row)}: drop is {drop!r}, wanted 1 without labels, or labels.")
            pairs.append((name, None if drop == "1" else text))
    found: dict[str, str | None] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        name, text = pair if isinstance(pair, tuple) else ("", pair)
        if not name or name in found or not isinstance(text, str | None):
            raise KitError(
                f"{path} corrects {name!r} to {text!r}, wanted labels or null for each clip, once."
            )
        found[name] = text
    return found


def apply_corrections(table: Any, corrections: Mapping[str, str | None]) -> Any:
    """The table with its corrected clips: their labels are complete then, and dropped ones are gone.

    Errors: KitError for clips that the table lacks, labels that none of its clips has, and no clip left
    """
    known, there = class_names([*table["labels"], *table.get("false_labels", ())]), {*table["fname"]}
    for name, text in corrections.items():
        if name not in there:
            raise KitError(f"the corrected clip {name!r} is not in the table of {len(there)} clips.")
        for label in {*split_labels(text or "")}.difference(known):
            raise KitError(f"{name!r} is corrected to a new label {label!r}: {closest(label, known)}.")
    changed = table[[corrections.get(name, "") is not None for name in table["fname"]]].reset_index(drop=True)
    if not len(changed):
        raise KitError("the corrections drop every clip of the table.")
    for row in changed.index[changed["fname"].isin([*corrections])]:
        new = {"labels": corrections[changed["fname"][row]], "false_labels": ALL_OTHERS}
        for column in new.keys() & {*changed}:
            changed.loc[row, column] = new[column]
    return changed
