"""Files that are always whole, digests, and CSV tables as text."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kit.core.errors import KitError, closest


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a part file beside `path`, rename it into place. Errors: KitError where it cannot"""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        why = error.strerror or error
        raise KitError(
            f"cannot write {path}: {why}. Choose a folder you may write to, with space."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole; bytes of names that are no UTF-8 stay."""
    write_whole(path, lambda handle: handle.write(text.encode("utf-8", "surrogateescape")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def file_digest(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def bytes_digest(content: bytes) -> str:
    """The sha256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def text_digest(*texts: str) -> str:
    """The sha256 of several texts, told apart by their lengths."""
    joined = "".join(f"{len(text)}:{text}" for text in texts)
    return bytes_digest(joined.encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class TextTable:
    """A CSV as text: columns by their names, and the line that ends each row."""

    path: str | Path
    columns: dict[str, list[Any]]
    lines: list[int]

    def at(self, row: int) -> str:
        """A row's file and line."""
        return f"{self.path}, line {self.lines[row]}"

    def check_names(self, column: str, once: bool = True) -> None:
        """Raise KitError at a name that is empty or, if wanted `once`, stands above."""
        first: dict[str, int] = {}
        for row, name in enumerate(self.columns[column]):
            if not name.strip():
                raise KitError(f"{self.at(row)}: {column} is empty: fill it in or remove the line.")
            if first.setdefault(name, row) != row and once:
                above = f"{name!r} stands on line {self.lines[first[name]]} already"
                raise KitError(f"{self.at(row)}: {above}: give it one line (labels are joined by commas).")

    def numbers(
        self,
        column: str,
        wanted: str = "a number from 0, such as 44.5",
        fits: Callable[[Any], bool] = lambda value: 0 <= value < math.inf,
        kind: Callable[[str], Any] = float,
    ) -> list[Any]:
        """A column as numbers of a kind. Errors: KitError at the first that does not fit, as 1_0, Python's ten"""
        values: list[Any] = []
        for row, text in enumerate(self.columns[column]):
            with contextlib.suppress(ValueError):
                values.append(kind(text))
            if len(values) == row or not fits(values[row]) or "_" in text:
                raise KitError(f"{self.at(row)}: {column} is {text!r}, wanted {wanted}.")
        return values


def read_table(path: str | Path, wanted: Sequence[str] = (), exact: bool = False) -> TextTable:
    """A CSV as text, with the columns `wanted`, without blank lines.

    `exact` keeps blanks around the columns' names, and bytes that are no UTF-8 as write_text writes them.
    Errors: KitError for what is no CSV in UTF-8, a column missing or named twice, a row of another width
    """
    if not isinstance(path, str | Path):
        raise KitError(
            f"a table is the path of a CSV, got a {type(path).__name__}: write it with to_csv first."
        )
    errors = "surrogateescape" if exact else "strict"
    try:
        with open(path, encoding="utf-8-sig", errors=errors, newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
        if rows and rows[0][1][0].startswith(("\udcff", "\udcfe")):
            raise UnicodeError("it is in UTF-16")
    except (OSError, UnicodeError, csv.Error) as error:
        raise KitError(f"cannot read {path}: {error}. It must be a CSV in UTF-8.") from error
    if not rows:
        raise KitError(f"{path} has no header: its first line must name the columns.")
    (_, header), *body = rows
    names = header if exact else [name.strip() for name in header]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise KitError(f"{path} names the column {name!r} twice: rename one of them.")
    for name in wanted:
        if name not in names:
            raise KitError(f"{path} has no column {name!r}: {closest(name, names)}.")
    for line, row in body:
        if len(row) != len(names):
            told = f"{len(row)} fields under {len(names)} columns"
            raise KitError(f"{path}, line {line}: {told}: a field with commas must be quoted.")
    columns = {name: [row[i] for _, row in body] for i, name in enumerate(names)}
    return TextTable(path, columns, [line for line, _ in body])


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as a CSV with LF line ends, whole."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    write_text(path, out.getvalue())
