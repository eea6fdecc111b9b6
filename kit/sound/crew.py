"""Jobs on files in, results in order out: no wait without end."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass
class Slot(Generic[Job, Result]):
    """One job on its way: `result` is there once `done` is set."""

    job: Job
    done: threading.Event = field(default_factory=threading.Event)
    started_at: float | None = None
    result: Result | None = None
    error: Exception | None = None


class Crew(Generic[Job, Result]):
    """Threads that do jobs while the caller computes.

    A job that hangs is given up after `patience_s` for `give_up(job)`, and its thread, a daemon, is replaced. Each
    halves the patience, down to an eighth: a folder full of them does not take all the time there is.
    Units: seconds of `now`, a monotonic clock
    """

    def __init__(
        self,
        work: Callable[[Job], Result],
        give_up: Callable[[Job], Result],
        threads: int,
        patience_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work, self.give_up, self.now = work, give_up, now
        self.patience_s, self.least_patience_s = patience_s, patience_s / 8
        self.waiting: queue.SimpleQueue[Slot[Job, Result] | None] = queue.SimpleQueue()
        self.threads = 0
        for _ in range(max(1, threads)):
            self.hire()

    def hire(self) -> None:
        """Start one more thread."""
        self.threads += 1
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """A thread's work: job after job, until dismissed."""
        for slot in iter(self.waiting.get, None):
            slot.started_at = self.now()
            try:
                slot.result = self.work(slot.job)
            except Exception as error:
                slot.error = error
            slot.done.set()

    def begin(self, job: Job) -> Slot[Job, Result]:
        """Queue a job; the caller bounds how many are on their way."""
        slot = Slot[Job, Result](job)
        self.waiting.put(slot)
        return slot

    def finish(self, slot: Slot[Job, Result]) -> Result:
        """Wait for a job, at most `patience_s` from its start."""
        while not slot.done.wait(timeout=min(0.1, self.patience_s)):
            if slot.started_at is not None and self.now() - slot.started_at > self.patience_s:
                self.hire()
                self.patience_s = max(self.patience_s / 2, self.least_patience_s)
                return self.give_up(slot.job)
        if slot.error:
            raise slot.error
        return cast(Result, slot.result)

    def dismiss(self) -> None:
        """Let the threads end once the queue is empty."""
        for _ in range(self.threads):
            self.waiting.put(None)
