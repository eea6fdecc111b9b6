'''Time several functions in turn, in one process, and compare them by ratios.'''

import statistics
import time
from collections.abc import Callable


def interleaved_times(
    works: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    '''Time every function `repeats` times, in turn, so that a noisy machine slows them all alike.

    Units: seconds
    '''
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = clock()
            work()
            times[name].append(clock() - start)
    return times


def print_times(times: dict[str, list[float]]) -> None:
    '''Print a line per function: its median, least and greatest time.'''
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f'  {name:44} {middle:8.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})')


def time_ratio(times: dict[str, list[float]], above: str, below: str) -> str:
    '''Return the median ratio of two functions' times, turn by turn, with its range.'''
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
