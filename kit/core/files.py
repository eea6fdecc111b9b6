'''Write files that are always whole, hash them, and read CSV tables as text.'''

import contextlib
import csv
import glob
import hashlib
import io
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kit.core.errors import KitError, suggest
from kit.core.runtime import get_rank

# What libsndfile and FFmpeg read.
AUDIO_SUFFIXES = '''
    .wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .spx .mp3 .mp2 .mpga .m4a .m4b .mp4 .aac .adts .3gp .aif .aiff
    .aifc .au .snd .caf .wma .asf .mka .webm .weba .amr .ape .wv .tta .ac3 .voc .sph .nist .paf .pvf .avr .svx .8svx
'''


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    '''Let `write` fill a temporary file beside `path`, then rename it.

    A killed process leaves the old file or the new one, and a temporary file that `locked` removes.
    '''
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        if path.is_symlink():
            path = path.resolve()
            part = path.with_name(part.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, 'w+b') as handle:
            write(handle)
            handle.flush()
            # Without fsync, a crash of the machine after the rename could leave an empty file.
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        problem = f'cannot write {path}: {error.strerror or error}'
        raise KitError(f'{problem}. Choose a folder with space where you may write.') from error


def write_text(path: Path, text: str) -> None:
    '''Write a whole file in UTF-8; surrogate escapes, as in file names, become their bytes.'''
    content = text.encode('utf-8', 'surrogateescape')
    write_whole(path, lambda handle: handle.write(content))


def write_json(path: Path, value: Any) -> None:
    '''Write indented JSON as a whole file.'''
    write_text(path, json.dumps(value, indent=1) + '\n')


def file_identity(path: Path) -> str:
    '''A text that changes when a file is replaced or written; empty for no file.'''
    with contextlib.suppress(OSError):
        status = path.stat()
        return f'{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}'
    return ''


@contextmanager
def locked(folder: Path, output: Path, wait: bool = False) -> Iterator[None]:
    '''Keep other processes from writing to `output` meanwhile, by a lock file in `folder`.

    Where another process has the lock, this is an error, and of processes that share their work the first locks for
    all; with `wait`, each waits for its turn. The lock ends with the process. Killed ones' temporary files are removed.
    '''
    if get_rank() > 0 and not wait:
        yield
        return
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / 'lock', 'a+', encoding='utf-8')
    except (ImportError, OSError):  # Windows, or a folder where nothing can be written: what follows says so
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or 'another process'
            raise KitError(f'{owner} writes to {output} now: wait for it, or choose another --out.') from error
        except OSError:  # some network file systems have no locks
            yield
            return
        lock.truncate(0)
        lock.write(f'process {os.getpid()} on {platform.node()}, since {time.ctime()},')
        lock.flush()
        for place in {folder, output if output.is_dir() else output.parent}:
            for part in place.glob('.*.*.part'):
                if not is_running(part.suffixes[-2].removeprefix('.')):
                    part.unlink(missing_ok=True)
        yield


def is_running(process: str) -> bool:
    '''Whether a process of this number runs here; true where this is unknown.'''
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        pass
    return True


def audio_stem(name: str) -> str:
    '''A file's name without the ending of an audio file.'''
    stem, dot, ending = name.rpartition('.')
    return stem if stem and dot + ending.lower() in AUDIO_SUFFIXES.split() else name


def file_digest(path: Path) -> str:
    '''The SHA-256 of a file.'''
    with open(path, 'rb') as handle:
        return hashlib.file_digest(handle, 'sha256').hexdigest()


def bytes_digest(content: bytes) -> str:
    '''The SHA-256 of some bytes.'''
    return hashlib.sha256(content).hexdigest()


def text_digest(*texts: str) -> str:
    '''One SHA-256 for several texts. Their lengths keep ("ab", "c") and ("a", "bc") apart.'''
    return bytes_digest(''.join(f'{len(text)}:{text}' for text in texts).encode('utf-8', 'surrogateescape'))


@dataclass(frozen=True)
class TextTable:
    '''A CSV of text: columns by name, and the line number where each row ends.'''

    path: str | Path
    columns: dict[str, list[Any]]
    lines: list[int]

    def at(self, row: int) -> str:
        '''A row's file and line, for error messages.'''
        return f'{self.path}, line {self.lines[row]}'

    def check_names(self, column: str, once: bool = True) -> None:
        '''Raise KitError at a name that is empty or, if `once`, that an earlier row has too.'''
        first_row: dict[str, int] = {}
        for row, name in enumerate(self.columns[column]):
            if not name.strip():
                raise KitError(f'{self.at(row)}: {column} is empty: fill it in or remove the line.')
            earlier = first_row.setdefault(name, row)
            if once and earlier != row:
                cure = 'join its labels by commas' if 'labels' in self.columns else f'give each {column} once'
                raise KitError(f'{self.at(row)}: {name!r} stands on line {self.lines[earlier]} already: {cure}.')

    def numbers(
        self,
        column: str,
        wanted: str = 'a number from 0, such as 44.5',
        fits: Callable[[Any], bool] = lambda value: 0 <= value < math.inf,
        kind: Callable[[str], Any] = float,
    ) -> list[Any]:
        '''Convert a column with `kind`.'''
        values: list[Any] = []
        for row, text in enumerate(self.columns[column]):
            try:
                # Beside an empty cell, pandas writes an integer as a float.
                value = kind(text.removesuffix('.0') if kind is int else text)
                # Python reads "1_0" as ten. In a table it is a typing error.
                is_good = '_' not in text and fits(value)
            except ValueError:
                is_good = False
            if not is_good:
                raise KitError(f'{self.at(row)}: {column} is {text!r}, wanted {wanted}.')
            values.append(value)
        return values


def read_table(
    path: str | Path, wanted: Sequence[str] = (), exact: bool = False, first_column: bool = False
) -> TextTable:
    '''Read a CSV as text. Blank lines are skipped; the columns `wanted` must be there.

    With `exact`, for a template's ids and classes, names keep their spaces, and bytes that are not UTF-8 are surrogate
    escapes, which write_text turns back. With `first_column`, others stay empty: templates may have 10^6 rows of zeros.
    '''
    if not isinstance(path, str | Path):
        raise KitError(f'a table is the path of a CSV, got a {type(path).__name__}: use to_csv first.')
    errors = 'surrogateescape' if exact else 'strict'
    rows: list[Any] = []  # lists of cells, or first cells after the header
    lines: list[int] = []
    lengths: list[int] = []
    try:
        with open(path, encoding='utf-8-sig', errors=errors, newline='') as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    lengths.append(len(row))
                    lines.append(reader.line_num)
                    rows.append(row[0] if first_column and rows else row)
        # These are the first bytes of UTF-16, as surrogate escapes show them.
        if rows and rows[0][0].startswith(('\udcff', '\udcfe')):
            raise UnicodeError('it is in UTF-16')
    except OSError as error:
        raise KitError(f'cannot read {path}: {error.strerror or error}: check the path.') from error
    except (UnicodeError, csv.Error) as error:
        raise KitError(f'cannot read {path}: {error}. It must be a CSV in UTF-8.') from error
    if not rows:
        raise KitError(f'{path} has no header: its first line must name the columns.')

    header, *body = rows
    if len(header) == 1 and any(mark in header[0] for mark in '\t;|'):
        raise KitError(f'{path} has one column, {header[0]!r}: separate columns by commas.')
    names = header if exact else [name.strip() for name in header]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise KitError(f'{path} names the column {name!r} twice: rename one of them.')
    for name in wanted:
        if name not in names:
            raise KitError(f'{path} has no column {name!r}: {suggest(name, names)}.')
    for line, length in zip(lines, lengths, strict=True):
        if length != len(names):
            got = f'{length} fields under {len(names)} columns'
            raise KitError(f'{path}, line {line}: {got}: a field with commas must be quoted.')
    if first_column:
        columns = {name: [] for name in names} | {names[0]: body}
    else:
        columns = {name: [row[i] for row in body] for i, name in enumerate(names)}
    return TextTable(path, columns, lines[1:])


def join_cells(cells: Iterable[str]) -> str:
    '''Join cells to a line of CSV.'''
    text = io.StringIO(newline='')
    # The characters of the line's end are quoted too.
    csv.writer(text, lineterminator='\r\n').writerow(cells)
    return text.getvalue().removesuffix('\r\n')


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    '''Write a whole CSV file with LF line ends.'''
    out = io.StringIO(newline='')
    csv.writer(out, lineterminator='\n').writerows(rows)
    write_text(path, out.getvalue())


def expand_pattern(pattern: str | Path) -> list[Path]:
    '''Find the files that a path or a glob pattern names. Brackets of a file or folder that exists are its name's.'''
    path = Path(pattern)
    if os.path.isfile(path):
        return [path]
    folder = next((parent for parent in path.parents if os.path.isdir(parent)), Path())
    names = glob.glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)
    return [folder / name for name in sorted(names) if os.path.isfile(folder / name)]


def read_json(path: Path) -> dict[str, Any]:
    '''Read a JSON file, empty if there is none.'''
    return dict(json.loads(path.read_text(encoding='utf-8'))) if path.is_file() else {}
