"""A duration like 55m in, a deadline that counts from the process's start out."""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kit.core.errors import KitError

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
