"""A child process that runs this kit's command line and can be stopped on time."""

import codecs
import contextlib
import ctypes
import linecache
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.runtime import WORKER_MARK

ERROR_MARK = "\x1e"


def source_file() -> Path | None:
    """The single file that this code runs from; None for the package kit/.

    Pasted code is read back from the notebook's line cache and written to a new file.
    """
    name = source_file.__code__.co_filename
    if source_file.__module__.startswith("kit."):
        return None
    if Path(name).is_file():
        return Path(name).resolve()
    lines = linecache.getlines(name)
    if not lines:
        raise KitError("cannot find the kit's own source: save audiotag_kit.py and %run it.")
    path = Path(tempfile.mkdtemp(prefix="audiotag_kit_")) / "audiotag_kit.py"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def source_root() -> Path:
    """The folder that holds the package kit/."""
    return Path(source_file.__code__.co_filename).resolve().parents[2]


def self_command() -> tuple[list[str], dict[str, str]]:
    """Python's words and environment that run this kit's command line."""
    if source := source_file():
        return [str(source)], {}
    paths = [str(source_root()), os.environ.get("PYTHONPATH")]
    return ["-m", "kit"], {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as command-line words: --name=value, once per item of a list."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for item in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
            if item is not None and item is not False:
                words.append(flag if item is True else f"{flag}={item}")
    return words


def end_with_parent() -> None:
    """In a worker: end this process when its supervisor died."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def exit_after(seconds: float) -> Callable[[], object]:
    """End this process with code 0 after so long, whatever code does.

    Returns what calls it off. Without glibc nothing is armed.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        create, arm, delete, leave = libc.timer_create, libc.timer_settime, libc.timer_delete, libc._exit
    except (OSError, AttributeError):
        return lambda: None
    monotonic, in_a_thread, timer = 1, 2, ctypes.c_void_p()
    address = ctypes.cast(leave, ctypes.c_void_p).value
    sigevent = ctypes.create_string_buffer(struct.pack("PiiPP", 0, 0, in_a_thread, address, 0), 64)
    span = (ctypes.c_long * 4)(0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
    if create(monotonic, sigevent, ctypes.byref(timer)) or arm(timer, 0, span, None):
        return lambda: None
    return lambda: delete(timer)


def run_supervised(words: list[str], stop_by: Deadline, echo: Callable[[str], object]) -> int | None:
    """Run this kit's command line in a child; its exit code, None when killed at `stop_by`.

    What it prints goes to `echo` as it comes. Only a child can be stopped on time whatever its code does.
    """
    command, environment = self_command()
    child = subprocess.Popen(
        [sys.executable, "-u", *command, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment, WORKER_MARK: "1", "PYTHONIOENCODING": "utf-8:backslashreplace"},
        start_new_session=True,
    )
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def pump() -> None:
        text = codecs.getincrementaldecoder("utf-8")("replace")
        while chunk := os.read(child.stdout.fileno(), 65536):  # type: ignore[union-attr]
            said.put(text.decode(chunk))
        said.put(None)

    threading.Thread(target=pump, daemon=True).start()
    try:
        while (left := stop_by.left_s()) > 0:
            with contextlib.suppress(queue.Empty):
                if (heard := said.get(timeout=min(0.2, left))) is None:
                    return child.wait(timeout=max(0.1, min(stop_by.left_s(), 3600.0)))
                echo(heard)
        return None
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()
            child.wait(timeout=0.2)
