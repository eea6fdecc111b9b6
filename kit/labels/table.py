"""Clip tables in, class lists and target matrices out."""

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kit.core.errors import KitError, closest

CLIP_COLUMNS = ("fname", "labels")


def read_clip_table(path: str | os.PathLike[str]) -> Any:
    """A clip table, `fname,labels[,fold][,weight][,source]`, as a pandas DataFrame.

    Names and labels stay the text they are (`000316`, `1e5`, `NA`); `fold` becomes integers and
    `weight` floats where present, further columns stay text. Empty labels mean a clip without any.
    Errors: KitError that names the line, for anything a training run would stumble over later.
    """
    import pandas

    header, lines, rows = read_text_rows(path)
    for name in CLIP_COLUMNS:
        if name not in header:
            raise KitError(
                f"{path} has no column {name!r}, only {', '.join(header)}: {closest(name, header)}."
            )
    if not rows:
        raise KitError(f"{path} holds a header and no clips: add a line per clip.")
    columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    check_unique_names(columns["fname"], lines, path)
    if "fold" in columns:
        columns["fold"] = parse_column(columns["fold"], lines, path, "fold", parse_fold)
    if "weight" in columns:
        columns["weight"] = parse_column(columns["weight"], lines, path, "weight", parse_weight)
    return pandas.DataFrame(columns)


def read_text_rows(path: str | os.PathLike[str]) -> tuple[list[str], list[int], list[list[str]]]:
    """The header, the line numbers and the rows of a CSV, all as text; blank lines are skipped.

    A row with a field too many is an error here, where pandas would shift its columns in silence.
    """
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if row:
                    lines.append(reader.line_num)
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KitError(f"cannot read the table {path}: {error}. It must be a CSV in UTF-8.") from error
    if not header:
        raise KitError(f"{path} has no header: its first line must name the columns.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise KitError(f"{path} names the column {repeated[0]!r} twice: remove one of them.")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise KitError(
                f"{path}, line {line}: {len(row)} fields under {len(header)} columns; "
                'several labels share one quoted field: a.wav,"Bark,Meow".'
            )
    return header, lines, rows


def check_unique_names(names: Sequence[str], lines: Sequence[int], path: str | os.PathLike[str]) -> None:
    """Raise KitError at the first empty or repeated file name."""
    first: dict[str, int] = {}
    for name, line in zip(names, lines, strict=True):
        if not name.strip():
            raise KitError(f"{path}, line {line}: fname is empty: name the file or remove the line.")
        if name in first:
            raise KitError(
                f"{path}, line {line}: {name!r} stands on line {first[name]} already: "
                "give a clip one line, with its labels joined by commas."
            )
        first[name] = line


def parse_column(
    texts: Sequence[str],
    lines: Sequence[int],
    path: str | os.PathLike[str],
    name: str,
    parse: Callable[[str], Any],
) -> list[Any]:
    """Each text parsed; KitError names line, column and value of the first that cannot be."""
    values = []
    for text, line in zip(texts, lines, strict=True):
        try:
            values.append(parse(text.strip()))
        except ValueError as error:
            raise KitError(f"{path}, line {line}: {name} is {text!r}, wanted {error}.") from error
    return values


def parse_fold(text: str) -> int:
    """A fold's number; ValueError says what was wanted."""
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise ValueError("a whole number such as 0 (or leave the column out)")
    return int(text)


def parse_weight(text: str) -> float:
    """A clip's weight; ValueError says what was wanted."""
    wanted = "a positive number such as 1.0 (drop a clip by removing its line)"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not (math.isfinite(value) and value > 0):
        raise ValueError(wanted)
    return value


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of one clip: split at commas, trimmed, empty ones dropped."""
    if not isinstance(text, str):
        raise KitError(f"labels must be text, got {text!r}: read the table with read_clip_table.")
    return tuple(label for label in (part.strip() for part in text.split(",")) if label)


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Every class that the clips' labels name, once, sorted by code point."""
    return tuple(sorted({label for text in labels for label in split_labels(text)}))


def label_targets(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """One where a clip has the label, else zero: a clip without labels is known to hold no class.

    Shape:  n label texts, K classes -> (n, K) float32
    Errors: KitError that lists the labels which are no class, or a class named twice.
    """
    column = {name: k for k, name in enumerate(classes)}
    if len(column) != len(classes):
        raise KitError(f"the {len(classes)} classes hold only {len(column)} names: remove the repeated ones.")
    targets = np.zeros((len(labels), len(classes)), dtype=np.float32)
    unknown: set[str] = set()
    for i, text in enumerate(labels):
        for label in split_labels(text):
            if label in column:
                targets[i, column[label]] = 1.0
            else:
                unknown.add(label)
    if unknown:
        shown = ", ".join(map(repr, sorted(unknown)[:10])) + (", ..." if len(unknown) > 10 else "")
        raise KitError(
            f"{len(unknown)} labels are none of the {len(classes)} classes: {shown}. "
            f"Correct them, or add them to the classes: {closest(min(unknown), classes)}."
        )
    return targets
