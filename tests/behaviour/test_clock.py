'''Durations are read as they are written; a deadline counts from the start of the process or from a given moment.'''

import io
import math
import os
import time
from pathlib import Path

import pytest

from kit.core.clock import Deadline, advance, parse_duration, process_start, progress_bar, set_deadline
from kit.core.errors import KitError

DURATIONS = {'3300': 3300.0, '55m': 3300.0, '1h1m1s': 3661.0, '0.5h': 1800.0, ' 2H ': 7200.0, '1e3': 1000.0, 7.5: 7.5}
NO_DURATIONS = ['', 'm', '55min', '1h30', 'h1', '-5m', '0s', -1, 0, 'nan', 'inf', '1d', '5 m', None, True, '1:30:00']


def test_a_duration_is_read_as_it_is_written():
    assert {text: parse_duration(text) for text in DURATIONS} == pytest.approx(DURATIONS)


@pytest.mark.parametrize('text', NO_DURATIONS)
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(KitError, match=r'seconds or like 55m, 1h30m or 90s, got'):
        parse_duration(text)


@pytest.mark.skipif(not Path('/proc/self/stat').is_file(), reason='this system does not say when a process started')
def test_the_start_of_the_process_agrees_with_the_kernels_boot_time():
    fields = Path(f'/proc/{os.getpid()}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
    lines = Path('/proc/stat').read_text(encoding='utf-8').splitlines()
    boot = next(float(line.split()[1]) for line in lines if line.startswith('btime'))
    start = boot + int(fields[19]) / os.sysconf('SC_CLK_TCK')
    assert process_start() == pytest.approx(start, abs=2.5)
    assert process_start() <= time.time()


def test_a_deadline_is_read_on_its_own_clock():
    now_s = 1000.0
    deadline = Deadline(1060.0, lambda: now_s)
    assert deadline.left_s() == 60.0
    now_s = 1100.0
    assert deadline.left_s() == -40.0
    assert Deadline().left_s() == math.inf


def test_a_deadline_counts_from_the_given_start_or_from_the_start_of_the_process():
    start = math.floor(time.time()) - 1000.0
    assert set_deadline('55m', start).at == start + 3300.0
    assert set_deadline(30, start).at == start + 30.0
    assert set_deadline('10m').at == pytest.approx(process_start() + 600.0, abs=5)
    for wrong in (time.perf_counter() - 61 * 86400, time.time() + 5 * 3600, 'noon', object()):
        with pytest.raises(KitError, match='started_at is a past moment in Unix seconds'):
            set_deadline('55m', wrong)


def test_a_progress_bar_shows_its_text_and_stops_at_its_end(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr('sys.stderr', screen)
    with progress_bar(3, 'train', 'epochs') as bar:
        bar.set_postfix_str('fold 0, epoch 2, loss 0.1234, lwlrap 0.5678')
        advance(bar, 2.0)
        advance(bar, 1.5)
        assert bar.n == 3
    last = screen.getvalue().splitlines()[-1].rpartition('\r')[2]
    assert '3/3 epochs [' in last and '<' in last
    assert 'fold 0, epoch 2, loss 0.1234, lwlrap 0.5678' in last
