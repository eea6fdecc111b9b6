"""Durations, deadlines, stopwatches and progress bars."""

import contextlib
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.core.errors import KitError
from kit.core.runtime import in_worker

UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str | float | int) -> float:
    """Seconds from 3300, "3300", "55m", "1h30m" or "90s". Errors: KitError for anything else"""
    spelled = str(text).strip().lower()
    parts = re.findall(r"[\d.]+[hms]", spelled)
    try:
        only_parts = "".join(parts) == spelled
        seconds = sum(float(part[:-1]) * UNIT_S[part[-1]] for part in parts) if only_parts else float(spelled)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise KitError(f"a duration is seconds or like 55m, 1h30m or 90s, got {text!r}.")
    return seconds


def process_start() -> float:
    """When this process began, in Unix seconds; now, where nobody tells."""
    age = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = float(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - max(age, 0.0)


@dataclass(frozen=True)
class Deadline:
    """The moment by which work is done, or none. `now` is its clock. Units: Unix seconds"""

    at: float = math.inf
    now: Callable[[], float] = time.time

    def left_s(self) -> float:
        """Seconds until then; infinite without one, negative after it."""
        return self.at - self.now()


def set_deadline(duration: str | float, started_at: float | None = None) -> Deadline:
    """A deadline `duration` after `started_at`, the process's start unless given.

    Errors: KitError where `started_at` is no moment of these days, as in another clock's seconds
    """
    start = process_start() if started_at is None else started_at
    if not abs(time.time() - start) < 60 * 86400:
        raise KitError(f"started_at is in Unix seconds, like time.time(), got {start}.")
    return Deadline(start + parse_duration(duration))


def progress_bar(total: float, task: str, unit: str, shown: bool = True) -> Any:
    """A tqdm bar: the notebook's kind in a notebook, else text. Units: `unit` per step of `total`"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm(
        total=total,
        desc=task,
        unit=unit,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed} < {remaining}]",
        disable=not shown,
        mininterval=5.0 if in_worker() else 0.5,  # a notebook keeps every line that a worker prints
        dynamic_ncols=True,
    )


def advance(bar: Any, amount: float) -> None:
    """Move a bar on, not past its end: parts may add up to a hair more."""
    bar.update(max(0.0, min(amount, bar.total - bar.n)))


class Stopwatch:
    """Seconds spent under each name, and the spans of them, which count from `began`, now unless given.

    What is measured within a fiftieth of all the time after a span makes it longer, so that spans stay few.
    """

    def __init__(self, began: float | None = None) -> None:
        self.began = time.perf_counter() if began is None else began
        self.seconds: dict[str, float] = {}
        self.spans: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of a block to a name."""
        start = time.perf_counter() - self.began
        try:
            yield
        finally:
            end = time.perf_counter() - self.began
            self.seconds[name] = self.seconds.get(name, 0.0) + end - start
            spans = self.spans.setdefault(name, [])
            near = spans and start - spans[-1][1] < end / 50
            first, till = spans.pop() if near else (start, start)
            spans.append((first, till + end - start))
