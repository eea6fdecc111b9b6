"""Contents in, whole files out: written beside, then renamed, so that a kill leaves the last good one."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from kit.core.errors import KitError


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill an open part file beside `path`, flush it to disk, and rename it into place.

    Errors: KitError where the folder cannot be written.
    """
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
        raise KitError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder you may write to, with space."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as it is, whole; bytes of file names that are no UTF-8 stay those bytes."""
    write_whole(path, lambda handle: handle.write(text.encode("utf-8", "surrogateescape")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def bytes_digest(content: bytes) -> str:
    """The sha256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def text_digest(*texts: str) -> str:
    """The sha256 of several texts, told apart by their lengths."""
    joined = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(joined.encode("utf-8", "surrogateescape")).hexdigest()
