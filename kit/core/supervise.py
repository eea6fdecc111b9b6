"""A command for this very file in, a child process that is stopped on time out."""

import contextlib
import ctypes
import linecache
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kit.core.clock import Deadline
from kit.core.errors import KitError

WORKER_MARK = "AUDIOTAG_KIT_WORKER"
ERROR_MARK = "\x1e"


def am_worker() -> bool:
    """True inside the child process that a supervisor started."""
    return os.environ.get(WORKER_MARK) == "1"


def own_source() -> Path | None:
    """The single file that this code runs from; None where it runs from the package kit/.

    Pasted code has no file: its source is read back from the notebook's line cache and written to a new one.
    """
    name = own_source.__code__.co_filename
    if own_source.__module__.startswith("kit."):
        return None
    if Path(name).is_file():
        return Path(name).resolve()
    lines = linecache.getlines(name)
    if not lines:
        raise KitError("cannot find the kit's own source to run it again: save audiotag_kit.py and %run it.")
    path = Path(tempfile.mkdtemp(prefix="audiotag_kit_")) / "audiotag_kit.py"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def own_root() -> Path:
    """The folder that holds the package kit/."""
    return Path(own_source.__code__.co_filename).resolve().parents[2]


def own_command() -> tuple[list[str], dict[str, str]]:
    """The words and the environment that run this kit's command line again in a new process."""
    environment = dict(os.environ)
    source = own_source()
    if source is not None:
        return [sys.executable, "-u", str(source)], environment
    paths = [str(own_root()), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return [sys.executable, "-u", "-m", "kit"], environment


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as command-line words: --name=value, once per item of a list; None and False are left out."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            many = isinstance(value, Iterable) and not isinstance(value, str)
            words += [f"{flag}={item}" for item in (value if many else [value])]
    return words


def end_with_parent() -> None:
    """In a worker: end this process when the supervisor's end of the pipe closes, however it died."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class TimerEvent(ctypes.Structure):
    """glibc's struct sigevent, for a timer that calls a function in a thread of its own."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 64),
    )


def exit_after(seconds: float) -> Callable[[], object]:
    """End this process with code 0 after so long, even where code holds the interpreter lock.

    Returns what calls it off. Where there is no glibc nothing is armed.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        create, arm, delete, leave = libc.timer_create, libc.timer_settime, libc.timer_delete, libc._exit
    except (OSError, AttributeError):
        return lambda: None
    monotonic, in_a_thread, timer = 1, 2, ctypes.c_void_p()
    event = TimerEvent(None, 0, in_a_thread, ctypes.cast(leave, ctypes.c_void_p).value, None)
    span = (ctypes.c_long * 4)(0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
    if create(monotonic, ctypes.byref(event), ctypes.byref(timer)) or arm(timer, 0, ctypes.byref(span), None):
        return lambda: None
    return lambda: delete(timer)


def kill_tree(child: "subprocess.Popen[bytes]") -> None:
    """End a child and everything it started, at once."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


def run_supervised(words: list[str], stop_by: Deadline, echo: Callable[[str], object]) -> int | None:
    """Run this kit's command line in a child; its exit code, or None when it was killed at `stop_by`.

    What the child prints goes to `echo` as it comes. Only a child process can be stopped on time whatever
    its code does, and a notebook's kernel outlives it.
    """
    command, environment = own_command()
    child = subprocess.Popen(
        [*command, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment | {WORKER_MARK: "1", "PYTHONIOENCODING": "utf-8:backslashreplace"},
        start_new_session=True,
    )
    said: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def pump() -> None:
        assert child.stdout is not None
        while chunk := os.read(child.stdout.fileno(), 65536):
            said.put(chunk)
        said.put(b"")

    threading.Thread(target=pump, daemon=True).start()
    try:
        if not echo_until_done(said, stop_by, echo):
            return None
        return child.wait(timeout=max(0.1, min(stop_by.left_s(), 3600.0)))
    except subprocess.TimeoutExpired:
        return None
    finally:
        kill_tree(child)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.2)


def echo_until_done(
    said: "queue.SimpleQueue[bytes]", stop_by: Deadline, echo: Callable[[str], object]
) -> bool:
    """Pass on what comes until the empty chunk that ends it; False when `stop_by` came first."""
    while stop_by.left_s() > 0:
        try:
            chunk = said.get(timeout=min(0.2, max(0.01, stop_by.left_s())))
        except queue.Empty:
            continue
        if not chunk:
            return True
        echo(chunk.decode("utf-8", "replace"))
    return False
