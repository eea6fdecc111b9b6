'''The supervisor passes on what its child prints, kills it in time, and knows what was open when it died.'''

import os
import signal
import time
from pathlib import Path

import pytest

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import locked
from kit.core.worker import Ending, fork_worker, opened, spawn_worker, supervise
from kit.infer.job import MAX_BLIND_DEATHS, Suspects


def soon() -> Deadline:
    '''A deadline that is far enough for all that happens here.'''
    return Deadline(time.time() + 120)


def test_no_character_is_cut_where_the_pipe_is_cut() -> None:
    pieces: list[str] = []
    word = '█' * 30000  # 90 kB in UTF-8, more than the pipe passes at once
    ending = supervise(spawn_worker([word], '1'), soon(), pieces.append)
    text = ''.join(pieces)
    assert ending.code == 2 and len(pieces) > 1
    assert text.count('█') == 30000 and '\ufffd' not in text


def test_a_child_is_killed_when_the_time_is_over() -> None:
    worker = spawn_worker(['recipes'], '1')
    assert supervise(worker, Deadline(time.time() + 0.01), lambda text: None).code is None
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_the_supervisor_knows_what_was_open_when_its_child_died(one_core: None) -> None:
    printed: list[str] = []

    def work() -> None:
        print('begun', flush=True)
        with opened('file', ['done.wav']):
            pass
        with opened('file', ['poison.wav']), opened('model', ['m.pt', 'poison.wav']):
            print('in it', flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    worker = fork_worker(work, patience_s=60.0)
    assert worker is not None
    ending = supervise(worker, soon(), printed.append)
    assert ending.code == -signal.SIGKILL
    assert ending.opened == [('file', ['poison.wav']), ('model', ['m.pt', 'poison.wav'])]
    assert ''.join(printed) == 'begun\nin it\n', 'lines for the supervisor are not shown'


def test_an_error_of_a_forked_child_is_one_line_for_its_supervisor(one_core: None) -> None:
    printed: list[str] = []

    def work() -> None:
        raise KitError('no such\nfile')

    worker = fork_worker(work, patience_s=60.0)
    assert worker is not None
    assert supervise(worker, soon(), printed.append).code == 2
    assert ''.join(printed) == '\x1eno such file\n'


def test_files_that_were_open_together_are_read_one_by_one_and_then_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ('a.wav', 'b.wav', 'c.wav')]
    for path in paths:
        path.write_bytes(b'x')
    suspects = Suspects.read(tmp_path / 'state' / 'suspects.json')
    two = Ending(-11, [('file', [str(paths[0])]), ('file', [str(paths[2])])])
    assert suspects.blame(two, 'died') == '2 files are read last, one by one'
    assert suspects.among(paths) == ([0, 2], {})
    assert suspects.blame(Ending(-11, [('file', [str(paths[2])])]), 'died') == f'{paths[2]} is left out'
    again = Suspects.read(tmp_path / 'state' / 'suspects.json')
    assert again.among(paths) == ([0, 2], {2: 'died'})
    paths[2].write_bytes(b'a new file')
    assert again.among(paths)[1] == {}, 'a file that was replaced is tried again'


def test_a_model_that_dies_twice_is_left_out_and_blind_deaths_end_the_tries(tmp_path: Path) -> None:
    clips = [str(tmp_path / f'{i}.wav') for i in range(4)]
    suspects = Suspects(tmp_path / 'suspects.json')
    assert suspects.blame(Ending(-9, [('model', ['m.pt', *clips[:2]])]), 'died')
    assert not suspects.models_out and len(suspects.isolated) > 0
    assert suspects.blame(Ending(-9, [('model', ['m.pt', *clips[2:]])]), 'died') == 'm.pt is left out'
    assert suspects.models_out == {'m.pt': 'died'}
    answers = [suspects.blame(Ending(-9, []), 'died') for _ in range(MAX_BLIND_DEATHS)]
    assert answers[-1] is None and all(answers[:-1])


def test_a_second_process_is_told_who_writes_to_an_output(tmp_path: Path, one_core: None) -> None:
    printed: list[str] = []
    (tmp_path / '.x.csv.999999999.part').write_text('of a killed process')

    def work() -> None:
        with locked(tmp_path / 'state', tmp_path / 'x.csv'):
            pass

    with locked(tmp_path / 'state', tmp_path / 'x.csv'):
        assert not list(tmp_path.glob('*.part')) and not list(tmp_path.glob('.*.part'))
        worker = fork_worker(work, patience_s=60.0)
        assert worker is not None and supervise(worker, soon(), printed.append).code == 2
    assert f'process {os.getpid()} on' in printed[0] and 'choose another --out' in printed[0]
    work()
