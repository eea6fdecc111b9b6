'''Threads return each job's result, and a job that hangs costs a bounded wait.'''

import threading

import pytest

from kit.infer.loader import Task, TimeoutPool

SHORT_S = 1e-3


class Clock:
    '''A clock that moves by `step_s` at each call.'''

    def __init__(self, step_s=0.0, time_s=0.0):
        self.step_s = step_s
        self.time_s = time_s
        self.lock = threading.Lock()

    def __call__(self):
        with self.lock:
            self.time_s += self.step_s
            return self.time_s


def result_of(pool, task):
    '''The task's result; a pool that waits without end fails the test instead of hanging it.'''
    results = []
    thread = threading.Thread(target=lambda: results.append(pool.result(task)), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert results, 'result() waited without end'
    return results[0]


def test_each_task_gets_the_result_of_its_own_job_in_whatever_order_they_end():
    gates = [threading.Event() for _ in range(6)]

    def work(i):
        assert gates[i].wait(20)
        if i:
            gates[i - 1].set()
        return i * i

    pool = TimeoutPool(work, -1, 6, now=Clock())
    tasks = [pool.submit(i) for i in range(6)]
    gates[5].set()
    assert [result_of(pool, task) for task in tasks] == [0, 1, 4, 9, 16, 25]
    pool.shutdown()


def test_as_many_jobs_run_at_once_as_there_are_threads_and_no_more():
    running = 0
    counts = []
    lock = threading.Lock()
    three_at_work = threading.Barrier(3)

    def work(i):
        nonlocal running
        with lock:
            running += 1
            counts.append(running)
        three_at_work.wait(20)
        with lock:
            running -= 1
        return i

    pool = TimeoutPool(work, -1, 3, now=Clock())
    tasks = [pool.submit(i) for i in range(12)]
    assert [result_of(pool, task) for task in tasks] == list(range(12))
    pool.shutdown()
    assert max(counts) == 3


@pytest.mark.parametrize('threads', [1, 2])
def test_a_job_that_hangs_times_out_and_the_others_still_run(threads):
    never = threading.Event()

    def work(job):
        if job == 'hangs':
            never.wait()
        return job.upper()

    clock = Clock(step_s=1.0)
    pool = TimeoutPool(work, 'timeout', threads, timeout_s=SHORT_S, now=clock)
    try:
        assert result_of(pool, pool.submit('hangs')) == 'timeout'
        assert result_of(pool, pool.submit('hangs')) == 'timeout'
        pool.timeout_s = 1e6
        tasks = [pool.submit(job) for job in 'abc']
        assert [result_of(pool, task) for task in tasks] == ['A', 'B', 'C']
    finally:
        never.set()
        pool.shutdown()


def test_each_timeout_halves_the_limit_down_to_an_eighth():
    never = threading.Event()
    pool = TimeoutPool(lambda job: never.wait(), None, 1, timeout_s=SHORT_S, now=Clock(1.0))
    limits = []
    for job in range(5):
        pool.result(pool.submit(job))
        limits.append(pool.timeout_s / SHORT_S)
    never.set()
    pool.shutdown()
    assert limits == [1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 8]


class SetAfter(threading.Event):
    '''An event that is set after `waits` waits, each of which returns at once.'''

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def wait(self, timeout=None):
        self.waits -= 1
        return self.waits < 0


@pytest.mark.parametrize('started_at, result', [(None, 'done'), (960.0, 'done'), (940.0, 'timeout')])
def test_the_limit_counts_from_the_start_of_a_job_not_from_its_submission(started_at, result):
    pool = TimeoutPool(str.upper, 'timeout', 1, timeout_s=50.0, now=Clock(time_s=1000.0))
    assert pool.result(Task('job', SetAfter(5), started_at, 'done')) == result
    pool.shutdown()


def test_a_result_that_is_ready_is_returned_however_late_it_is_asked_for():
    clock = Clock()
    pool = TimeoutPool(lambda job: None, 'timeout', 1, timeout_s=5.0, now=clock)
    task = pool.submit(1)
    assert task.done.wait(20)
    clock.time_s = 1e9
    assert pool.result(task) is None
    pool.shutdown()


@pytest.mark.parametrize('threads', [0, 3])
def test_its_threads_are_daemons_and_end_after_shutdown(threads):
    before = set(threading.enumerate())
    pool = TimeoutPool(lambda job: job, -1, threads, now=Clock())
    tasks = [pool.submit(job) for job in range(5)]
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert len(started) == max(1, threads) and all(thread.daemon for thread in started)
    assert [result_of(pool, task) for task in tasks] == [0, 1, 2, 3, 4]
    pool.shutdown()
    for thread in started:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in started)


def test_the_exception_of_a_job_is_raised_and_its_thread_goes_on():
    def work(job):
        if job == 'bad':
            raise ValueError('a bad job')
        return job

    pool = TimeoutPool(work, 'timeout', 1, timeout_s=1e6, now=Clock(step_s=1.0))
    with pytest.raises(ValueError, match='a bad job'):
        pool.result(pool.submit('bad'))
    assert result_of(pool, pool.submit('good')) == 'good'
    pool.shutdown()
