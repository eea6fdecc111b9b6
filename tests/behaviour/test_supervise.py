"""A supervised command line says what it says, as it says it."""

import time

from kit.core.clock import Deadline
from kit.core.worker import run_supervised


def test_no_character_is_torn_where_the_pipe_is_cut():
    said: list[str] = []
    command = "█" * 30000
    code = run_supervised([command], Deadline(time.time() + 120), said.append)
    text = "".join(said)
    assert code == 2 and len(said) > 1 and text.count("█") == 30000 and "\ufffd" not in text


def test_a_child_is_killed_when_the_time_is_over():
    said: list[str] = []
    assert run_supervised(["recipes"], Deadline(time.time() + 0.01), said.append) is None
