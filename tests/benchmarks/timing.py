"""Rivals in, their times taken in turn out: medians, spreads and ratios inside one process."""

import statistics
import time
from collections.abc import Callable


def take_turns(rivals: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every rival, called in turn so that a noisy machine is noisy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return times


def show_times(times: dict[str, list[float]]) -> None:
    """A line per rival: the median with the least and greatest."""
    for name, seconds in times.items():
        print(f"  {name:44} {statistics.median(seconds):8.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")


def ratios(times: dict[str, list[float]], above: str, below: str) -> str:
    """The median ratio of two rivals, turn by turn, with its range."""
    pairs = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
