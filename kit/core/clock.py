'''Durations, deadlines, the time budget under one, stopwatches and progress bars.'''

import contextlib
import math
import os
import re
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.core.errors import KitError
from kit.core.runtime import get_rank, in_worker

UNIT_S = {'h': 3600.0, 'm': 60.0, 's': 1.0}


def parse_duration(text: str | float | int) -> float:
    '''Convert 3300, "3300", "55m", "1h30m" or "90s" to seconds. Errors: KitError for anything else'''
    cleaned = str(text).strip().lower()
    parts = re.findall(r'[\d.]+[hms]', cleaned)
    try:
        if ''.join(parts) == cleaned:
            seconds = sum(float(part[:-1]) * UNIT_S[part[-1]] for part in parts)
        else:
            seconds = float(cleaned)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise KitError(f'a duration is seconds or like 55m, 1h30m or 90s, got {text!r}.')
    return seconds


def process_start() -> float:
    '''When this process started, in Unix seconds; now where this is unknown.'''
    age_s = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # The command's name, in brackets, may hold spaces. Field 22 of stat is the start, in ticks after boot.
        ticks = Path('/proc/self/stat').read_text('utf-8').rpartition(')')[2].split()[19]
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - float(ticks) / os.sysconf('SC_CLK_TCK')
    return time.time() - max(age_s, 0.0)


@dataclass(frozen=True)
class Deadline:
    '''The moment when work must be done, by default never, and its clock. Units: Unix seconds'''

    at: float = math.inf
    now: Callable[[], float] = time.time

    def left_s(self) -> float:
        '''The seconds left: infinite without a deadline, negative after it.'''
        return self.at - self.now()


def set_deadline(duration: str | float, started_at: float | None = None) -> Deadline:
    '''The deadline `duration` after `started_at`, or after the start of this process.'''
    try:
        start = process_start() if started_at is None else float(started_at)
    except (TypeError, ValueError):
        start = math.nan
    # Written as "not between": NaN is refused too.
    if not -60 < time.time() - start < 60 * 86400:
        raise KitError(f'started_at is a past moment in Unix seconds, like time.time(), got {started_at}.')
    return Deadline(start + parse_duration(duration))


def divide_time(clock: Deadline, parts: float) -> float | None:
    '''One of several parts of the time left, in seconds from the start of the process, as set_deadline counts.'''
    return clock.now() + clock.left_s() / parts - process_start() if math.isfinite(clock.at) else None


def progress_bar(total: float, task: str, unit: str, shown: bool = True) -> Any:
    '''A tqdm bar with the time passed and left: a widget in a notebook, else text.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tqdm warns where notebook widgets are not installed
        from tqdm.auto import tqdm
    return tqdm(
        total=total,
        desc=task,
        unit=unit,
        bar_format='{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}]{postfix}',
        disable=not shown or get_rank() > 0,
        mininterval=5.0 if in_worker() else 0.5,  # a notebook keeps every line that a worker prints
        dynamic_ncols=True,
    )


def advance(bar: Any, amount: float) -> None:
    '''Move a bar forward, but not past its end: rounded amounts may exceed the total.'''
    bar.update(max(0.0, min(amount, bar.total - bar.n)))


class Stopwatch:
    '''Add up the seconds spent under each name, and record when, as spans from `began`.

    A span that starts within 2 % of all the time so far after its name's last one extends it: spans stay few.
    '''

    def __init__(self, began: float | None = None) -> None:
        self.began = time.perf_counter() if began is None else began
        self.seconds: dict[str, float] = {}
        self.spans: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        '''Add the time of a `with` block to a name.'''
        start = time.perf_counter() - self.began
        try:
            yield
        finally:
            end = time.perf_counter() - self.began
            self.seconds[name] = self.seconds.get(name, 0.0) + end - start
            spans = self.spans.setdefault(name, [])
            if spans and start - spans[-1][1] < end / 50:
                # Only the measured time is added: a name's spans add up to its seconds.
                spans[-1] = (spans[-1][0], spans[-1][1] + end - start)
            else:
                spans.append((start, end))


class TimeBudget:
    '''Decides how much work still fits before the deadline, with writing the CSV.

    A batch is reckoned from the slowest of the last ones of its kind of network, per frame. A budget that ran out stays
    so, even if the clock is set back. Units: paces, seconds per frame
    '''

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self.write_s = 0.0
        self.paces: dict[str, deque[float]] = {}
        self.stopped = False

    def left_s(self) -> float:
        '''The seconds left for computing.'''
        # The CSV is written once more at the end, which may take twice as long as before.
        return self.deadline.left_s() - 2 * self.write_s - 0.2

    def should_stop(self, needed_s: float = 0.0) -> bool:
        '''Decide whether the next step, of so many seconds, no longer fits.'''
        self.stopped = self.stopped or self.left_s() <= needed_s
        return self.stopped

    def count_fitting(self, kind: str, inputs: int, frames: int) -> int:
        '''How many inputs of equal length a kind of network computes in time; of an unknown one 1, to measure it.'''
        left_s = self.left_s()
        if left_s == math.inf:
            return inputs
        recent = self.paces.get(kind)
        input_s = max(recent) * frames if recent else 0.0
        return 0 if self.should_stop(input_s) else min(inputs, int(left_s / input_s) if input_s > 0 else 1)

    @contextmanager
    def measure(self, kind: str, frames: int) -> Iterator[None]:
        '''Time a batch of a kind of network.'''
        start = self.deadline.now()
        yield
        self.paces.setdefault(kind, deque(maxlen=8)).append((self.deadline.now() - start) / frames)
