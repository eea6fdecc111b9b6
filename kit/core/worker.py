'''Run work in a child process, stop it on time, and learn what it had open when it died.

Code in C that holds the interpreter lock stops for no thread or signal handler: only a process can be stopped.
'''

import codecs
import contextlib
import ctypes
import json
import linecache
import os
import queue
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kit.core.clock import Deadline
from kit.core.errors import KitError, one_line
from kit.core.runtime import WORKER_MARK, cpu_count, in_notebook, in_worker

# A worker prints this before its error's text, and its supervisor raises the error.
ERROR_MARK = '\x1e'
# A worker prints this before a line of JSON, [is_open, kind, names]; see `opened`.
OPENED_MARK = '\x1d'
READY = b'\x06'
# What a started interpreter runs first: the kernel then ends it with its parent. 1 is PR_SET_PDEATHSIG.
FOLLOW_PARENT = 'import ctypes, os, runpy, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == {} or os._exit(1)'


def source_file() -> Path | None:
    '''The single file that this code runs from, or None for the package kit/.

    Code pasted into a notebook is written to a new file, from the text that IPython keeps for tracebacks.
    '''
    name = source_file.__code__.co_filename
    if source_file.__module__.startswith('kit.'):
        return None
    if Path(name).is_file():
        return Path(name).resolve()
    lines = linecache.getlines(name)
    if not lines:
        raise KitError("cannot find the kit's own source: save audiotag_kit.py and %run it.")
    path = Path(tempfile.mkdtemp(prefix='audiotag_kit_')) / 'audiotag_kit.py'
    path.write_text(''.join(lines), encoding='utf-8')
    return path


def source_root() -> Path:
    '''The folder that holds the package kit/.'''
    return Path(source_file.__code__.co_filename).resolve().parents[2]


def self_command() -> tuple[list[str], dict[str, str]]:
    '''The arguments and environment variables with which Python runs this kit's command line.'''
    source = source_file()
    run = f"runpy.run_path({str(source)!r}, run_name='__main__')"
    environment = {}
    if source is None:
        run = "runpy.run_module('kit', run_name='__main__', alter_sys=True)"
        paths = [str(source_root()), os.environ.get('PYTHONPATH', '')]
        environment = {'PYTHONPATH': os.pathsep.join(filter(None, paths))}
    if not sys.platform.startswith('linux'):
        return [str(source)] if source else ['-m', 'kit'], environment
    return ['-c', f'{FOLLOW_PARENT.format(os.getpid())}; {run}'], environment


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    '''Convert options to arguments: --name=value, for each item of a list; --name for True, none for None and False.'''
    arguments = []
    for name, value in options.items():
        flag = '--' + name.replace('_', '-')
        for item in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
            if item is None or item is False:
                continue
            arguments.append(flag if item is True else f'{flag}={item}')
    return arguments


@contextmanager
def opened(kind: str, names: Sequence[str]) -> Iterator[None]:
    '''In a worker, report to the supervisor what is read or computed meanwhile, so open at a death.'''

    def send(is_open: bool) -> None:
        line = f'{OPENED_MARK}{json.dumps([is_open, kind, names])}\n'
        with contextlib.suppress(OSError):
            os.write(1, line.encode())  # one write: lines of several threads do not mix

    if not in_worker():
        yield
        return
    send(True)
    try:
        yield
    finally:
        send(False)


def exit_after(seconds: float) -> Callable[[], object]:
    '''End this process with exit code 0 after so many seconds; return a function that cancels this.

    Python's own timers do not fire while C code that hangs holds the interpreter lock. So a timer of the C library
    calls `_exit` in its own thread. Without glibc nothing ends the process.
    '''
    try:
        libc = ctypes.CDLL('libc.so.6')
        timer_create = libc.timer_create
    except (OSError, AttributeError):
        return lambda: None
    clock_monotonic, sigev_thread = 1, 2  # constants of time.h and signal.h
    # struct sigevent in 64 bytes: value (the exit code that _exit gets), signal number, kind, function, attributes
    function = ctypes.cast(libc._exit, ctypes.c_void_p).value
    event = ctypes.create_string_buffer(struct.pack('PiiPP', 0, 0, sigev_thread, function, 0), 64)
    # struct itimerspec: no repetition, then seconds and nanoseconds; all zero would disarm the timer
    span = (ctypes.c_long * 4)(0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
    timer = ctypes.c_void_p()
    if timer_create(clock_monotonic, event, ctypes.byref(timer)) or libc.timer_settime(timer, 0, span, None):
        return lambda: None
    return lambda: libc.timer_delete(timer)


@dataclass(eq=False)
class Worker:
    '''A child process: the pipe of what it prints, and `poll` for its exit code at its end.'''

    pid: int
    pipe: int
    poll: Callable[[], int | None]


@dataclass(frozen=True)
class Ending:
    '''A worker's exit code, None if it was killed, and what was `opened` by then, [kind, names].'''

    code: int | None
    opened: list[tuple[str, list[str]]]


def can_fork() -> bool:
    '''Whether a forked child of this process can compute: no other thread runs here, no device is in use.

    Computing on several cores starts a thread of OpenMP per further core, whose locks a forked child would wait for.
    The BLAS of numpy, which has no such trouble, starts as many at its import.
    '''
    uses_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if in_notebook() or threading.active_count() > 1 or uses_gpu:
        return False
    try:
        return len(os.listdir('/proc/self/task')) <= cpu_count()
    except OSError:  # no Linux; elsewhere libraries of the system forbid it
        return False


def fork_worker(work: Callable[[], object], patience_s: float) -> Worker | None:
    '''Start `work` in a forked child, which has all imports; None if it cannot compute within `patience_s`.'''
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    parent = os.getpid()
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Python warns of threads; can_fork has looked at them
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            os.dup2(write_end, 1)
            os.dup2(write_end, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ[WORKER_MARK] = '1'
            # The streams may be those of a test or of another program.
            sys.stdout = os.fdopen(1, 'w', 1, encoding='utf-8', errors='backslashreplace', closefd=False)
            sys.stderr = sys.stdout
            torch.ones(2**20).exp_()  # on all cores
            os.write(1, READY)
            if os.getppid() == parent:
                work()
                sys.stdout.flush()
                code = 0
        except KitError as error:
            print(f'{ERROR_MARK}{one_line(error)}', flush=True)  # the supervisor raises it
            code = 2
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)

    codes: list[int] = []

    def poll() -> int | None:
        if not codes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes.append(os.waitstatus_to_exitcode(status))
        return codes[0] if codes else None

    worker = Worker(pid, read_end, poll)
    if select.select([read_end], [], [], patience_s)[0] and os.read(read_end, 1) == READY:
        return worker
    kill_worker(worker)
    os.close(read_end)
    return None


def spawn_worker(words: Sequence[str], mark: str) -> Worker:
    '''Run this kit's command line in a new interpreter, with `mark` in the variable that marks a worker.'''
    command, environment = self_command()
    child = subprocess.Popen(
        [sys.executable, '-u', *command, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment, WORKER_MARK: mark, 'PYTHONIOENCODING': 'utf-8:backslashreplace'},
        start_new_session=True,
    )
    assert child.stdout is not None
    return Worker(child.pid, os.dup(child.stdout.fileno()), child.poll)


def kill_worker(worker: Worker) -> None:
    '''Kill a worker and the processes that it started.'''
    with contextlib.suppress(OSError):
        if hasattr(os, 'killpg'):
            os.killpg(worker.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(worker.pid, signal.SIGKILL)
    wait_for_exit(worker, 0.2)


def wait_for_exit(worker: Worker, seconds: float) -> int | None:
    '''A worker's exit code, or None if it has not ended after so many seconds.'''
    ended = threading.Event()
    while (code := worker.poll()) is None and seconds > 0:
        ended.wait(0.01)
        seconds -= 0.01
    return code


def supervise(worker: Worker, stop_by: Deadline, echo: Callable[[str], object]) -> Ending:
    '''Wait for a worker, and kill it at `stop_by`. What it prints goes to `echo`.'''
    printed: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read_pipe() -> None:
        # A read may end inside a character of several bytes; the decoder keeps the first ones for the next read.
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        with contextlib.suppress(OSError):
            while chunk := os.read(worker.pipe, 65536):
                printed.put(decoder.decode(chunk))
        os.close(worker.pipe)
        printed.put(None)

    still_open: list[tuple[str, list[str]]] = []
    rest = ''

    def show(text: str, is_end: bool) -> str:
        '''Echo all but lines on what is opened; return the beginning of an unfinished one.'''
        whole, mark, last = text.rpartition(OPENED_MARK)
        unfinished = mark + last if mark and not is_end and '\n' not in last else ''
        if not unfinished:
            whole = text
        for line in re.findall(f'{OPENED_MARK}(.*)\n', whole):
            is_open, kind, names = json.loads(line)
            if is_open:
                still_open.append((kind, names))
            elif (kind, names) in still_open:
                still_open.remove((kind, names))
        if visible := re.sub(f'{OPENED_MARK}.*\n', '', whole):
            echo(visible)
        return unfinished

    threading.Thread(target=read_pipe, daemon=True).start()
    try:
        while stop_by.left_s() > 0:
            try:
                text = printed.get(timeout=min(0.2, stop_by.left_s()))
            except queue.Empty:
                continue
            rest = show(rest + (text or ''), is_end=text is None)
            if text is None:
                return Ending(wait_for_exit(worker, max(0.1, min(stop_by.left_s(), 3600.0))), still_open)
        return Ending(None, still_open)
    finally:
        kill_worker(worker)
