"""The supervisor passes on what its child prints, and kills the child when the time is over."""

import time

from kit.core.clock import Deadline
from kit.core.worker import run_supervised


def test_no_character_is_cut_where_the_pipe_is_cut():
    pieces: list[str] = []
    word = "█" * 30000  # 90 kB in UTF-8, more than the pipe passes at once
    code = run_supervised([word], Deadline(time.time() + 120), pieces.append)
    text = "".join(pieces)
    assert code == 2 and len(pieces) > 1
    assert text.count("█") == 30000 and "\ufffd" not in text


def test_a_child_is_killed_when_the_time_is_over():
    assert run_supervised(["recipes"], Deadline(time.time() + 0.01), lambda text: None) is None
