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
    """Seconds spent under each name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of a block to a name."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
