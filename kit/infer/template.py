"""A sample submission in, its rows and classes as text out; scores in, the CSV that it asks for out."""

import csv
import functools
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from kit.core.errors import KitError
from kit.core.files import write_text
from kit.sound.decode import list_audio


@dataclass(frozen=True)
class Template:
    """The rows and columns a submission must have, byte for byte."""

    id_column: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class RowPlan:
    """Which file, and which end second within it, each row asks for.

    `form` is how the ids name files: "name" (with extension), "stem" or "window" (<stem>_<end second>).
    """

    form: str
    files: tuple[int | None, ...]
    ends_s: tuple[float | None, ...]
    idle_files: tuple[int, ...]

    def unheard(self, ids: Sequence[str]) -> list[str]:
        """The ids of rows without a file."""
        return [name for name, file in zip(ids, self.files, strict=True) if file is None]

    @functools.cached_property
    def period_s(self) -> float | None:
        """Seconds each window row stands for: the least distance between two ends of one file."""
        ends: dict[int, list[float]] = {}
        for file, end in zip(self.files, self.ends_s, strict=True):
            if file is not None and end is not None:
                ends.setdefault(file, []).append(end)
        gaps = [b - a for times in ends.values() for a, b in pairwise(sorted(set(times)))]
        if gaps:
            return min(gaps)
        return min((min(times) for times in ends.values()), default=None)


def read_template(path: Path) -> Template:
    """A sample submission: ids in the first column, classes in the others; everything read as text.

    Errors: KitError for a missing or empty file, no classes, names or ids that repeat, rows of another width
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            if handle.read(1) in ("\udcff", "\udcfe"):
                raise UnicodeError("it is in UTF-16, save it as UTF-8")
            handle.seek(0)
            rows = [row for row in csv.reader(handle) if row]
    except (OSError, UnicodeError, csv.Error) as error:
        raise KitError(
            f"cannot read the template {path}: {error}. Give the competition's sample submission."
        ) from error
    if not rows or len(rows[0]) < 2:
        raise KitError(f"the template {path} needs an id column and class columns, its header is {rows[:1]}.")
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise KitError(f"{path}, row {number}: {len(row)} fields where the header has {len(header)}.")
        if not row[0]:
            raise KitError(f"{path}, row {number}: no id. Every row of a template names a clip.")
    for what, names in (("column", header), ("id", [row[0] for row in body])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise KitError(
                f"{path}: the {what} {twice[0]!r} stands there more than once; each must be unique."
            )
    return Template(header[0], tuple(row[0] for row in body), tuple(header[1:]))


def split_window(name: str) -> tuple[str, float | None]:
    """An id of the form <stem>_<end second> in its parts; (name, None) where it is not of that form."""
    stem, _, end = name.rpartition("_")
    digits = end.replace(".", "", 1)
    is_time = stem and len(end) < 12 and digits.isascii() and digits.isdigit()
    return (stem, float(end)) if is_time else (name, None)


def by_path_or_base(names: Sequence[str]) -> dict[str, int]:
    """Where each name stands, by its path, and by its last part where only one name ends so."""
    bases = [name.rpartition("/")[2] for name in names]
    count = Counter(bases)
    return {base: i for i, base in enumerate(bases) if count[base] == 1} | {
        name: i for i, name in enumerate(names)
    }


def locate_clips(names: Sequence[str], folder: Path) -> list[Path]:
    """The files of a table's clips, named with or without extension; a clip that is not there keeps its name's path.

    Errors: KitError for a folder that is missing, and where a name without extension could mean two files
    """
    paths = list_audio(folder)
    plan = plan_rows(names, [path.relative_to(folder).as_posix() for path in paths])
    pairs = zip(names, plan.files, strict=True)
    return [folder / name if i is None or plan.form == "window" else paths[i] for name, i in pairs]


def plan_rows(ids: Sequence[str], files: Sequence[str]) -> RowPlan:
    """Find the file of every row, in the form of id that finds most; folders may be left out where that is clear.

    Shape:  ids of rows, files as paths relative to the audio folder -> one entry per row
    Errors: KitError where ids without extension could mean two files
    """
    stems = [name.rpartition(".")[0] or name for name in files]
    by_name, by_stem = by_path_or_base(files), by_path_or_base(stems)
    windows = [split_window(name) for name in ids]
    candidates = {
        "name": [by_name.get(name) for name in ids],
        "stem": [by_stem.get(name) for name in ids],
        "window": [by_stem.get(stem) if end is not None else None for stem, end in windows],
    }
    form = max(candidates, key=lambda kind: sum(file is not None for file in candidates[kind]))
    found = candidates[form]
    if form != "name":
        asked = {stems[file] for file in found if file is not None}
        twins = [stem for stem, count in Counter(stems).items() if count > 1 and stem in asked]
        if twins:
            names = [name for name, stem in zip(files, stems, strict=True) if stem == twins[0]]
            raise KitError(
                f"the id {twins[0]!r} could mean {' or '.join(names)}: keep one of them in the folder."
            )
    used = {file for file in found if file is not None}
    return RowPlan(
        form,
        tuple(found),
        tuple(end if form == "window" else None for _, end in windows),
        tuple(i for i in range(len(files)) if i not in used),
    )


def format_score(value: float) -> str:
    """A number as a float with nine significant digits: 0 is 0.0."""
    text = format(value, ".9g")
    return text if any(mark in text for mark in ".en") else text + ".0"


def write_submission(path: Path, template: Template, scores: np.ndarray) -> None:
    """The CSV that the template asks for, whole.

    Shape:  scores (rows, classes)
    Errors: KitError where a score is no finite number, or the shape is not the template's
    """
    if scores.shape != (len(template.ids), len(template.classes)) or not np.isfinite(scores).all():
        raise KitError(f"scores of shape {scores.shape} do not fit the template, or are not all finite.")
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([template.id_column, *template.classes])
    for name, row in zip(template.ids, scores.tolist(), strict=True):
        writer.writerow([name, *map(format_score, row)])
    write_text(path, out.getvalue())
