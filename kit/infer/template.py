"""A sample submission in, its rows and classes out; scores in, its CSV out."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from kit.audio.decode import list_audio
from kit.core.errors import KitError
from kit.core.files import read_table, write_rows


@dataclass(frozen=True)
class Template:
    """The rows and columns of a submission, byte for byte."""

    id_column: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class RowPlan:
    """Which file, and which end second in it, each row wants.

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
        """Seconds of a window row: the least distance between two ends of a file."""
        ends: dict[int, set[float]] = {}
        for file, end in zip(self.files, self.ends_s, strict=True):
            if file is not None and end is not None:
                ends.setdefault(file, set()).add(end)
        gaps = [b - a for times in ends.values() for a, b in pairwise(sorted(times))]
        return min(gaps or map(min, ends.values()), default=None)


def read_template(path: Path) -> Template:
    """A sample submission: a column of ids, then the classes, byte for byte.

    Errors: KitError for no classes, an id that is empty or stands there twice, and what read_table refuses
    """
    table = read_table(path, exact=True)
    id_column, *classes = table.columns
    if not classes:
        raise KitError(f"{path} has no class columns after {id_column!r}: give the sample submission.")
    table.check_names(id_column)
    return Template(id_column, tuple(table.columns[id_column]), tuple(classes))


def split_window(name: str) -> tuple[str, float | None]:
    """The parts of an id <stem>_<end second>; (name, None) for others."""
    stem, _, end = name.rpartition("_")
    digits = end.replace(".", "", 1)
    is_time = stem and len(end) < 12 and digits.isascii() and digits.isdigit()
    return (stem, float(end)) if is_time else (name, None)


def by_path_or_base(names: Sequence[str]) -> dict[str, int]:
    """Where each name stands, by its path, or by a last part that is unique."""
    bases = [name.rpartition("/")[2] for name in names]
    count = Counter(bases)
    places = {base: i for i, base in enumerate(bases) if count[base] == 1}
    return places | {name: i for i, name in enumerate(names)}


def locate_clips(names: Sequence[str], folder: Path) -> list[Path]:
    """The files of a table's clips, found as in plan_rows, else where their names say.

    Errors: KitError for a folder that is missing; as plan_rows
    """
    paths = list_audio(folder)
    plan = plan_rows(names, [path.relative_to(folder).as_posix() for path in paths])
    pairs = zip(names, plan.files, strict=True)
    return [folder / name if i is None or plan.form == "window" else paths[i] for name, i in pairs]


def plan_rows(ids: Sequence[str], files: Sequence[str]) -> RowPlan:
    """Find every row's file, in the form of id that finds most.

    Shape:  ids of rows, files as paths relative to the audio folder -> one entry per row
    Errors: KitError where ids without extension could mean two files
    """
    stems = [name.rpartition(".")[0] or name for name in files]
    by_name, by_stem = by_path_or_base(files), by_path_or_base(stems)
    windows = [split_window(name) for name in ids]
    candidates = {
        "name": list(map(by_name.get, ids)),
        "stem": list(map(by_stem.get, ids)),
        "window": [by_stem.get(stem) if end is not None else None for stem, end in windows],
    }
    form = min(candidates, key=lambda kind: candidates[kind].count(None))
    found, count = candidates[form], Counter(stems)
    for file in found:
        if form != "name" and file is not None and count[stems[file]] > 1:
            names = " or ".join(name for i, name in enumerate(files) if stems[i] == stems[file])
            raise KitError(f"the id {stems[file]!r} could mean {names}: keep one of them.")
    ends = tuple(end if form == "window" else None for _, end in windows)
    return RowPlan(form, tuple(found), ends, tuple(sorted(set(range(len(files))).difference(found))))


def format_score(value: float) -> str:
    """A float with nine significant digits: 0 is 0.0."""
    text = format(value, ".9g")
    return text if set(text) & set(".en") else text + ".0"


def write_submission(path: Path, template: Template, scores: np.ndarray) -> None:
    """Write the template's CSV, whole.

    Shape:  scores (rows, classes)
    Errors: KitError where a score is no finite number, or the shape is not the template's
    """
    if scores.shape != (len(template.ids), len(template.classes)) or not np.isfinite(scores).all():
        raise KitError(f"scores {scores.shape} do not fit the template or are not all finite.")
    cells = ([name, *map(format_score, row)] for name, row in zip(template.ids, scores.tolist(), strict=True))
    write_rows(path, [(template.id_column, *template.classes), *cells])
