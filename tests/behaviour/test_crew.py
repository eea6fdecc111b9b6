"""Threads hand results back in order, and a job that hangs costs a bounded wait."""

import itertools
import threading

import pytest

from kit.audio.timeout_pool import Task, TimeoutPool

TINY_S = 1e-3


class Clock:
    """A clock that only moves when it is told to, or by a step at each look."""

    def __init__(self, step_s=0.0):
        self.time_s, self.step_s = 0.0, step_s
        self.lock = threading.Lock()

    def __call__(self):
        with self.lock:
            self.time_s += self.step_s
            return self.time_s


def answer_of(crew, slot):
    """What `finish` gives; a crew that waits without end fails the test instead of hanging it."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(crew.finish(slot)), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert answers, "finish waited without end"
    return answers[0]


def test_results_belong_to_their_jobs_whatever_order_they_end_in():
    gates = [threading.Event() for _ in range(6)]

    def work(i):
        assert gates[i].wait(20)
        if i:
            gates[i - 1].set()
        return i * i

    crew = TimeoutPool(work, lambda i: -1, 6, now=Clock())
    slots = [crew.begin(i) for i in range(6)]
    gates[5].set()
    assert [answer_of(crew, slot) for slot in slots] == [0, 1, 4, 9, 16, 25]
    crew.shutdown()


def test_no_more_jobs_run_at_once_than_there_are_threads():
    running, most, lock = itertools.count(), [], threading.Lock()
    now_running = [0]
    pair = threading.Barrier(3)

    def work(i):
        next(running)
        with lock:
            now_running[0] += 1
            most.append(now_running[0])
        pair.wait(20)
        with lock:
            now_running[0] -= 1
        return i

    crew = TimeoutPool(work, lambda i: -1, 3, now=Clock())
    slots = [crew.begin(i) for i in range(12)]
    assert [answer_of(crew, slot) for slot in slots] == list(range(12))
    crew.shutdown()
    assert max(most) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_a_job_that_hangs_is_given_up_and_the_others_still_run(threads):
    never, clock = threading.Event(), Clock(step_s=1.0)

    def work(job):
        if job == "hangs":
            never.wait()
        return job.upper()

    crew = TimeoutPool(work, lambda job: f"gave {job} up", threads, timeout_s=TINY_S, now=clock)
    try:
        assert answer_of(crew, crew.begin("hangs")) == "gave hangs up"
        assert answer_of(crew, crew.begin("hangs")) == "gave hangs up"
        crew.timeout_s = 1e6
        slots = [crew.begin(job) for job in "abc"]
        assert [answer_of(crew, slot) for slot in slots] == ["A", "B", "C"]
    finally:
        never.set()
        crew.shutdown()


class Ready(threading.Event):
    """Is set when it has been waited for so many times."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def wait(self, timeout=None):
        self.waits -= 1
        return self.waits < 0


@pytest.mark.parametrize("started_at, answer", [(None, "done"), (960.0, "done"), (940.0, "given up")])
def test_patience_counts_from_the_start_of_a_job_not_from_its_place_in_the_queue(started_at, answer):
    clock = Clock()
    clock.time_s = 1000.0
    crew = TimeoutPool(str.upper, lambda job: "given up", 1, timeout_s=50.0, now=clock)
    assert crew.finish(Task("job", Ready(5), started_at, "done")) == answer
    crew.shutdown()


def test_a_result_that_comes_in_time_is_kept_though_the_clock_has_run_on():
    clock = Clock()
    crew = TimeoutPool(lambda job: job + 1, lambda job: -1, 1, timeout_s=5.0, now=clock)
    slot = crew.begin(1)
    assert slot.done.wait(20)
    clock.time_s = 1e9
    assert answer_of(crew, slot) == 2
    crew.shutdown()


def test_waiting_threads_keep_no_process_alive():
    before = set(threading.enumerate())
    crew = TimeoutPool(lambda job: job, lambda job: -1, 3, now=Clock())
    hired = [thread for thread in threading.enumerate() if thread not in before]
    assert len(hired) == 3 and all(thread.daemon for thread in hired)
    crew.shutdown()
    for thread in hired:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in hired)


def test_a_crew_of_no_threads_still_works():
    crew = TimeoutPool(lambda job: job, lambda job: -1, 0, now=Clock())
    assert answer_of(crew, crew.begin(3)) == 3
    crew.shutdown()


def test_none_is_a_result_like_any_other():
    crew = TimeoutPool(lambda job: None, lambda job: "given up", 1, now=Clock())
    slot = crew.begin(1)
    assert slot.done.wait(20)
    try:
        assert crew.finish(slot) is None
    finally:
        crew.shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_that_raises_says_so_at_once_and_its_thread_works_on():
    def work(job):
        if job == "bad":
            raise ValueError("a bad job")
        return job

    crew = TimeoutPool(work, lambda job: "given up", 1, timeout_s=TINY_S, now=Clock(step_s=1.0))
    slot = crew.begin("bad")
    try:
        with pytest.raises(ValueError, match="a bad job"):
            crew.finish(slot)
        assert crew.finish(crew.begin("good")) == "good"
    finally:
        crew.shutdown()
