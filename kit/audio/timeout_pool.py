"""A thread pool whose tasks cannot hang the caller."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass
class Task(Generic[Job, Result]):
    """One job on its way: `result` is there once `done` is set."""

    job: Job
    done: threading.Event = field(default_factory=threading.Event)
    started_at: float | None = None
    result: Result | None = None
    error: Exception | None = None


class TimeoutPool(Generic[Job, Result]):
    """Threads that do jobs while the caller computes.

    A job that hangs is given up after `timeout_s` for `give_up(job)`, and its thread, a daemon, is replaced. Each
    halves the patience, down to an eighth: a folder full of them does not take all the time there is.
    Units: seconds of `now`, a monotonic clock
    """

    def __init__(
        self,
        work: Callable[[Job], Result],
        give_up: Callable[[Job], Result],
        threads: int,
        timeout_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work, self.give_up, self.now = work, give_up, now
        self.timeout_s, self.min_timeout_s = timeout_s, timeout_s / 8
        self.waiting: queue.SimpleQueue[Task[Job, Result] | None] = queue.SimpleQueue()
        self.threads = 0
        for _ in range(max(1, threads)):
            self.start_thread()

    def start_thread(self) -> None:
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

    def begin(self, job: Job) -> Task[Job, Result]:
        """Queue a job; the caller bounds how many are on their way."""
        slot = Task[Job, Result](job)
        self.waiting.put(slot)
        return slot

    def finish(self, slot: Task[Job, Result]) -> Result:
        """Wait for a job, at most `timeout_s` from its start."""
        while not slot.done.wait(timeout=min(0.1, self.timeout_s)):
            if slot.started_at is not None and self.now() - slot.started_at > self.timeout_s:
                self.start_thread()
                self.timeout_s = max(self.timeout_s / 2, self.min_timeout_s)
                return self.give_up(slot.job)
        if slot.error:
            raise slot.error
        return cast(Result, slot.result)

    def shutdown(self) -> None:
        """Let the threads end once the queue is empty."""
        for _ in range(self.threads):
            self.waiting.put(None)
