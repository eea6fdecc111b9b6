"""Run this kit's command line in a child process, and stop it on time.

A thread or a signal handler cannot stop code in C that holds the interpreter lock. Only a process can be stopped.
"""

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

# A worker prints this before the text of its error, and its supervisor raises the error.
ERROR_MARK = "\x1e"


def source_file() -> Path | None:
    """Return the single file that this code runs from, or None for the package kit/.

    Code that was pasted into a notebook is written to a new file, from the text that IPython keeps for tracebacks.
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
    """Return the folder that holds the package kit/."""
    return Path(source_file.__code__.co_filename).resolve().parents[2]


def self_command() -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment variables with which Python runs this kit's command line."""
    source = source_file()
    if source:
        return [str(source)], {}
    paths = [str(source_root())]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return ["-m", "kit"], {"PYTHONPATH": os.pathsep.join(paths)}


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Convert options to command-line arguments: --name=value, repeated for each item of a list.

    None and False give no argument; True gives --name alone.
    """
    arguments = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        is_list = isinstance(value, Iterable) and not isinstance(value, str)
        for item in value if is_list else [value]:
            if item is None or item is False:
                continue
            arguments.append(flag if item is True else f"{flag}={item}")
    return arguments


def end_with_parent() -> None:
    """In a worker: end this process as soon as its supervisor ends, which closes the other end of stdin."""

    def wait_for_end() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def exit_after(seconds: float) -> Callable[[], object]:
    """End this process with exit code 0 after so many seconds; return a function that cancels this.

    Python's own timers do not fire while C code that hangs holds the interpreter lock. So this is a timer of the C
    library, which calls `_exit` in its own thread. Without glibc nothing ends the process.
    """

    try:
        libc = ctypes.CDLL("libc.so.6")
        timer_create = libc.timer_create
    except (OSError, AttributeError):
        return lambda: None
    clock_monotonic, sigev_thread = 1, 2  # constants of time.h and signal.h
    # struct sigevent in 64 bytes: value (the exit code that _exit gets), signal number, kind, function, attributes
    function = ctypes.cast(libc._exit, ctypes.c_void_p).value
    fields = struct.pack("PiiPP", 0, 0, sigev_thread, function, 0)
    event = ctypes.create_string_buffer(fields, 64)
    # struct itimerspec: no repetition, then seconds and nanoseconds; all zero would disarm the timer
    span = (ctypes.c_long * 4)(0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
    timer = ctypes.c_void_p()
    if timer_create(clock_monotonic, event, ctypes.byref(timer)) or libc.timer_settime(timer, 0, span, None):
        return lambda: None
    return lambda: libc.timer_delete(timer)


def run_supervised(words: list[str], stop_by: Deadline, echo: Callable[[str], object]) -> int | None:
    """Run this kit's command line in a child process; return its exit code, or None if killed at `stop_by`.

    Text that the child prints goes to `echo` as it comes.
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
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    printed: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read_pipe() -> None:
        # A read may end inside a character of several bytes; the decoder keeps its first bytes for the next read.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while chunk := os.read(pipe, 65536):
            printed.put(decoder.decode(chunk))
        printed.put(None)

    threading.Thread(target=read_pipe, daemon=True).start()
    try:
        while True:
            left_s = stop_by.left_s()
            if left_s <= 0:
                return None
            try:
                text = printed.get(timeout=min(0.2, left_s))
            except queue.Empty:
                continue
            if text is None:
                return child.wait(timeout=max(0.1, min(stop_by.left_s(), 3600.0)))
            echo(text)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # The whole group, as the child may have started processes of its own.
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
            child.wait(timeout=0.2)
