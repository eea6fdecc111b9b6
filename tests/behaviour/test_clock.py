"""A duration is seconds or 55m; a deadline counts from the process's start unless told otherwise."""

import math
import os
import time
from pathlib import Path

import pytest

from kit.core.clock import Deadline, parse_duration, process_start, set_deadline
from kit.core.errors import KitError

DURATIONS = {
    "3300": 3300.0,
    "55m": 3300.0,
    "1h30m": 5400.0,
    "90s": 90.0,
    "1h1m1s": 3661.0,
    "0.5h": 1800.0,
    " 2H ": 7200.0,
    "1.5m": 90.0,
    "1e3": 1000.0,
    "0.1": 0.1,
}


@pytest.mark.parametrize("text, seconds", DURATIONS.items())
def test_a_duration_is_read_as_it_is_written(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("number", [1, 3300, 0.25, 7.5])
def test_a_number_is_seconds(number):
    assert parse_duration(number) == number


WRONG = [
    "",
    "m",
    "55min",
    "1h30",
    "h1",
    "-5m",
    "0",
    "0s",
    -1,
    0,
    "nan",
    "inf",
    math.inf,
    math.nan,
    "1d",
    "5 m",
]


@pytest.mark.parametrize("wrong", [*WRONG, None, True, "1:30:00"])
def test_anything_else_is_refused_with_examples(wrong):
    with pytest.raises(KitError, match=r"seconds or like 55m, 1h30m or 90s, got"):
        parse_duration(wrong)


def test_the_process_began_before_now_and_keeps_its_start():
    before = process_start()
    assert before <= time.time()
    assert abs(process_start() - before) < 5


@pytest.mark.skipif(
    not Path("/proc/self/stat").is_file(), reason="this system does not tell when a process began"
)
def test_the_start_agrees_with_the_kernels_boot_time():
    fields = Path(f"/proc/{os.getpid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    boot = next(
        float(line.split()[1]) for line in open("/proc/stat", encoding="utf-8") if line.startswith("btime")
    )
    began = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    assert process_start() == pytest.approx(began, abs=2.5)


def test_a_deadline_is_read_off_its_own_clock():
    clock = {"s": 1000.0}
    deadline = Deadline(1060.0, lambda: clock["s"])
    assert deadline.left_s() == 60.0
    clock["s"] = 1059.5
    assert deadline.left_s() == 0.5
    clock["s"] = 1100.0
    assert deadline.left_s() == -40.0


def test_without_a_deadline_there_is_always_time_left():
    assert Deadline().left_s() == math.inf


def test_a_deadline_counts_from_the_start_that_is_given():
    start = math.floor(time.time()) - 1000.0
    assert set_deadline("55m", start).at == start + 3300.0
    assert set_deadline(30, start).at == start + 30.0
    with pytest.raises(KitError, match="55m"):
        set_deadline("soon", start)


def test_a_deadline_counts_from_the_processs_start_when_none_is_given():
    assert set_deadline("10m", None).at == pytest.approx(process_start() + 600.0, abs=5)
