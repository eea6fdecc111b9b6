'''Run jobs on threads, so that a job that hangs cannot stop the caller.'''

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

Job = TypeVar('Job')
Result = TypeVar('Result')

# How often `TimeoutPool.result` compares the clock with the time limit.
POLL_S = 0.1


@dataclass
class Task(Generic[Job, Result]):
    '''A submitted job, queued while `started_at` is None. `result` or `error` is valid once `done` is set.'''

    job: Job
    done: threading.Event = field(default_factory=threading.Event)
    started_at: float | None = None
    result: Result | None = None
    error: Exception | None = None


class TimeoutPool(Generic[Job, Result]):
    '''A pool of daemon threads with a time limit for each job.

    Python cannot stop a thread. A job that runs longer than `timeout_s` therefore keeps its thread, a new thread
    takes its place, and the job's result becomes `on_timeout(job)`. Each such job halves the limit, down to an
    eighth, so that a folder full of hanging files does not use up all the time.

    concurrent.futures does not fit: it joins its threads at exit, so one that hangs keeps Python alive.
    '''

    def __init__(
        self,
        work: Callable[[Job], Result],
        on_timeout: Callable[[Job], Result],
        threads: int,
        timeout_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work = work
        self.on_timeout = on_timeout
        self.now = now
        self.timeout_s = timeout_s
        self.min_timeout_s = timeout_s / 8
        self.max_threads = max(1, threads)
        self.threads = 0
        self.queue: queue.SimpleQueue[Task[Job, Result] | None] = queue.SimpleQueue()

    def start_thread(self) -> None:
        '''Start one more thread.'''
        self.threads += 1
        threading.Thread(target=self.run_tasks, daemon=True).start()

    def run_tasks(self) -> None:
        '''Run tasks from the queue until it returns None.'''
        for task in iter(self.queue.get, None):
            task.started_at = self.now()
            try:
                task.result = self.work(task.job)
            except Exception as error:
                task.error = error
            task.done.set()

    def submit(self, job: Job) -> Task[Job, Result]:
        '''Queue a job; the queue has no limit.'''
        task = Task[Job, Result](job)
        self.queue.put(task)
        if self.threads < self.max_threads:
            self.start_thread()
        return task

    def result(self, task: Task[Job, Result]) -> Result:
        '''Wait for a task's result, or raise its exception. The time limit counts from the job's start.'''
        while not task.done.wait(timeout=min(POLL_S, self.timeout_s)):
            if task.started_at is None or self.now() - task.started_at <= self.timeout_s:
                continue
            self.max_threads += 1
            self.start_thread()
            self.timeout_s = max(self.timeout_s / 2, self.min_timeout_s)
            return self.on_timeout(task.job)
        if task.error:
            raise task.error
        return cast(Result, task.result)

    def shutdown(self) -> None:
        '''Let every thread end when the queue is empty.'''
        for _ in range(self.threads):
            self.queue.put(None)
