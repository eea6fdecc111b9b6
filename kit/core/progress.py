"""Work with a known total in, a progress bar with the time left out."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kit.core.supervise import am_worker


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
        mininterval=5.0 if am_worker() else 0.5,  # a notebook keeps every line that a worker prints
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
