'''Law 8: with a deadline the work is done before it, whatever files, networks and devices do.'''

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kit.audio.decode import DECODERS, Decoder, Sound
from kit.core.clock import Deadline, TimeBudget, set_deadline
from kit.core.errors import KitError
from kit.infer.job import SubmissionWriter, SubmitJob, SubmitOptions
from kit.infer.loader import SpectrogramLoader
from kit.infer.predict import predict_clips
from kit.infer.submission import run_submission
from kit.infer.submit import submit
from kit.infer.submit_inputs import read_inputs
from tests.behaviour.trained import (
    HandClock,
    LoudBands,
    Trained,
    loud_tagger,
    nine_digits,
    noise,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)

RACE_S = 40.0

# What goes wrong in a worker: a module that Python loads by itself when it starts.
BEFORE = '''
import glob, os, signal, threading, time
def hold_the_lock():
    import ctypes
    ctypes.PyDLL(None).sleep(1000)
def in_worker():
    return bool(os.environ.get("AUDIOTAG_KIT_WORKER"))
import soundfile, torch
'''
HANGING_FILE = '''
read = soundfile.SoundFile
class Hanging(read):
    def __init__(self, file, *args, **options):
        if "hang" in str(file) and in_worker():
            threading.Event().wait()
        super().__init__(file, *args, **options)
soundfile.SoundFile = Hanging
'''
ONCE_A_MODEL_IS_DONE = '''
forward = torch.nn.Conv2d.forward
def wrong(self, x):
    if in_worker() and glob.glob(os.environ["STATE"] + "/[!.]*.npz"):
        {deed}
    return forward(self, x)
torch.nn.Conv2d.forward = wrong
'''
POISON = '''
read = soundfile.SoundFile
class Poison(read):
    def __init__(self, file, *args, **options):
        if "poison_" in str(file) and in_worker():
            signal.raise_signal(signal.SIGSEGV)
        super().__init__(file, *args, **options)
soundfile.SoundFile = Poison
'''
DEEDS = {
    'a file hangs its reader': HANGING_FILE,
    'files end the process': POISON,
    'a network holds the interpreter lock': ONCE_A_MODEL_IS_DONE.format(deed='hold_the_lock()'),
    'a network breaks the process': ONCE_A_MODEL_IS_DONE.format(deed='signal.raise_signal(signal.SIGSEGV)'),
    'the system kills the process': ONCE_A_MODEL_IS_DONE.format(deed='os.kill(os.getpid(), signal.SIGKILL)'),
}
SCRIPT = '''
import threading, time, torch
from torch import nn
from {place} import wrap_network, submit, {config}
class Stuck(nn.Module):
    def forward(self, spec):
        {deed}
tagger = wrap_network(Stuck(), FrontendConfig(sample_rate=8000, n_fft=400, hop_length=200, n_mels=30), list("abc"))
done = submit(tagger, {audio!r}, {out!r}, deadline="{seconds}s", progress=False)
print("RETURNED", time.time(), flush=True)
'''
SCRIPTS = {
    'in a script, a network waits for ever': 'threading.Event().wait()',
    'in a script, a network holds the interpreter lock': 'import ctypes; ctypes.PyDLL(None).sleep(1000)',
}


@dataclass
class Race:
    '''A process against its deadline.'''

    child: 'subprocess.Popen[str]'
    began: float
    out: Path
    ended: float | None = None


@pytest.fixture(scope='module')
def races(
    kit_command: list[str], trained: Trained, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Race]]:
    '''All races, started together: they wait, and so cost little; the tests come for them when they are over.'''
    folder = tmp_path_factory.mktemp('races')
    shutil.copytree(clips, folder / 'in')
    shutil.copytree(clips, folder / 'poisoned')
    for k in range(3):
        write_wav(folder / 'in' / f'hang_{k}.wav', noise(4000))
        write_wav(folder / 'poisoned' / f'poison_{k}.wav', noise(4000, seed=k))
    paths = [str(Path(kit_command[-1]).parent)] if kit_command[-1].endswith('.py') else []
    paths += filter(None, [os.environ.get('PYTHONPATH')])
    running: dict[str, Race] = {}
    for number, (name, deed) in enumerate(DEEDS.items()):
        room = folder / str(number)
        (room / 'site').mkdir(parents=True)
        (room / 'site' / 'sitecustomize.py').write_text(BEFORE + deed)
        audio = {'a file hangs its reader': folder / 'in', 'files end the process': folder / 'poisoned'}.get(
            name, clips
        )
        words = ['submit', '--audio', str(audio), '--out', 'out.csv']
        words += ['--deadline', f'{RACE_S}s', '--no-progress', '--checkpoints', *trained.mel]
        given = {'PYTHONPATH': os.pathsep.join([str(room / 'site'), *paths]), 'STATE': 'out.csv.state'}
        running[name] = start([*kit_command, *words], room, given)
    for number, (name, deed) in enumerate(SCRIPTS.items()):
        room = folder / f'script_{number}'
        room.mkdir()
        bundle = kit_command[-1].endswith('.py')
        script = SCRIPT.format(
            place='audiotag_kit' if bundle else 'kit.commands',
            config='FrontendConfig' if bundle else 'COMMANDS\nfrom kit.audio.frontend import FrontendConfig',
            deed=deed, audio=str(clips), out='out.csv', seconds=RACE_S,
        )  # fmt: skip
        (room / 'script.py').write_text(script)
        running[name] = start([sys.executable, 'script.py'], room, {'PYTHONPATH': os.pathsep.join(paths)})
    yield running
    for race in running.values():
        with contextlib.suppress(OSError):
            os.killpg(race.child.pid, signal.SIGKILL)
        race.child.wait()


def start(command: list[str], room: Path, environment: dict[str, str]) -> Race:
    '''Start a process in a folder, and a thread that notes when it ended.'''
    child = subprocess.Popen(
        command,
        cwd=room,
        env=os.environ | {'OMP_NUM_THREADS': '1'} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    race = Race(child, time.time(), room / 'out.csv')

    def note_end() -> None:
        child.wait()
        race.ended = time.time()

    threading.Thread(target=note_end, daemon=True).start()
    return race


def result(race: Race) -> str:
    '''What a process printed, once it ended; fails where it missed its deadline, or ended badly.'''
    try:
        output, _ = race.child.communicate(timeout=max(1.0, race.began + RACE_S + 2.0 - time.time()))
    except subprocess.TimeoutExpired:
        raise AssertionError('still running after the deadline') from None
    limit = time.time() + 5.0
    while race.ended is None and time.time() < limit:
        time.sleep(0.01)
    assert race.ended is not None and race.ended - race.began < RACE_S
    assert race.child.returncode == 0, output
    assert 'Traceback' not in output, output
    return output


# First the tests that need no process, while the races run.


def test_the_races_are_on(races: dict[str, Race]) -> None:
    assert len(races) == len(DEEDS) + len(SCRIPTS)


def test_a_budget_stops_while_one_more_step_and_the_writing_still_fit() -> None:
    clock = HandClock()
    budget = TimeBudget(Deadline(100.0, clock))
    budget.write_s = 2.0
    while budget.count_fitting('net', 1, 10):
        with budget.measure('net', 10):
            clock.time += 5.0
    assert budget.stopped and clock.time <= 100.0 - 2 * 2.0
    assert clock.time + 5.0 + 5.0 + 2 * 2.0 >= 100.0, 'it stopped too early'
    clock.time = 0.0
    assert budget.should_stop(), 'a budget that ran out stays so, even where the clock is set back'


def test_blending_counts_as_writing_when_a_budget_decides_what_still_fits(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    clock = HandClock(1000.0)
    options = SubmitOptions([loud_tagger()], tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    job = SubmitJob(options, Deadline(1100.0, clock))

    class SlowRows:
        template = read_inputs(job).template

        def result(self) -> np.ndarray:
            clock.time += 9.0
            return np.zeros((1, 3))

    SubmissionWriter(job).write(SlowRows())  # type: ignore[arg-type]
    assert job.budget.write_s >= 9.0 and (tmp_path / 'out.csv').is_file()


def test_without_a_deadline_a_budget_never_runs_out() -> None:
    clock = HandClock()
    budget = TimeBudget(Deadline(now=clock))
    for _ in range(10):
        with budget.measure('net', 10):
            clock.time += 1e6
        assert budget.count_fitting('net', 8, 10**6) == 8 and not budget.should_stop()


class Ticking(LoudBands):
    '''A network whose batches take a second of a clock that the test holds.'''

    def __init__(self, clock: HandClock, scale: float) -> None:
        super().__init__(3)
        self.clock, self.batches = clock, 0
        torch.nn.init.constant_(self.scale, scale)

    def forward(self, spec: Tensor) -> Tensor:
        self.clock.time += 1.0
        self.batches += 1
        return super().forward(spec)


@pytest.mark.parametrize('blend', ['mean', 'geometric', 'rank'])
@pytest.mark.parametrize('seconds', [0.1, 2.0, 7.0, 17.0, 28.0, 1000.0])
def test_rows_are_normalised_by_the_weights_they_got(tmp_path: Path, seconds: float, blend: str) -> None:
    '''Two models of weights 1 and 3 predict 12 clips, a batch each; the clock runs out somewhere.'''
    names = [f'{i:02d}.wav' for i in range(12)]
    for i, name in enumerate(names):
        write_wav(tmp_path / 'in' / name, noise(2000 + 400 * i, seed=i, level=0.01 * (1 + i)))
    clock = HandClock(1000.0)
    models = [Ticking(clock, 0.2), Ticking(clock, 0.5)]
    taggers = [loud_tagger(network) for network in models]
    options = SubmitOptions(
        taggers, tmp_path / 'in', tmp_path / 'out.csv', blend=blend, weights=[1.0, 3.0], batch_frames=1,
        progress=False,
    )  # fmt: skip
    report = run_submission(options, Deadline(1000.0 + seconds, clock))
    assert clock.time <= 1000.0 + seconds
    _, rows = read_scores(tmp_path / 'out.csv')
    batches = [network.batches for network in models]
    batches[0] -= 0 if seconds < 2 else 1 if seconds < 20 else 2  # to measure what a model of this kind costs
    assert batches[0] >= batches[1] and batches[1] == (12 if seconds > 27 else batches[1])
    assert sum(batches) >= min(24, int(seconds) - 5)
    single = [predict_clips(tagger, tmp_path / 'in', blend=blend).probabilities for tagger in taggers]
    both = predict_clips(taggers, tmp_path / 'in', blend=blend, weights=[1.0, 3.0]).probabilities
    for i, name in enumerate(names):
        wanted = both[i] if i < batches[1] else single[0][i]
        if i >= batches[0]:
            wanted = np.array([0.1, 0.2, 0.3]) if blend != 'rank' else np.array([1, 2, 3]) / 3
        np.testing.assert_allclose(rows[name], wanted, rtol=0, atol=1e-6)
    assert report['rows_all_models'] == batches[1] and report['rows_with_prior'] == 12 - batches[0]
    assert report['state'] == ('finished' if batches[1] == 12 else 'stopped by the deadline')


def test_a_deadline_that_has_passed_still_gives_a_whole_csv_at_once(
    trained: Trained, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = write_template(tmp_path / 't.csv', ['clip_00.wav', 'x'], trained.classes)
    submit(trained.mel[0], clips, tmp_path / 'out.csv', template, deadline='1m', started_at=time.time() - 61)
    assert 'has passed' in capsys.readouterr().out
    _, rows = read_scores(tmp_path / 'out.csv')
    assert list(rows) == ['clip_00.wav', 'x'] and np.array_equal(rows['clip_00.wav'], rows['x'])


def test_a_submission_can_be_printed_whenever_it_was_stopped(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    for began, words in ((time.time() - 61, 'the CSV is whole'), (time.time(), '1 predicted by all of 1 models')):
        out = tmp_path / f'{words[:3]}.csv'
        done = submit(loud_tagger(), tmp_path / 'in', out, deadline='1m', started_at=began, progress=False)
        assert words in str(done) and str(done) == repr(done)


def test_a_deadline_that_has_passed_takes_nothing_from_a_finished_csv(
    trained: Trained, clips: Path, tmp_path: Path
) -> None:
    submit(trained.mel[0], clips, tmp_path / 'out.csv', progress=False)
    done = (tmp_path / 'out.csv').read_bytes()
    submit(trained.mel[0], clips, tmp_path / 'out.csv', deadline='1m', started_at=time.time() - 61)
    assert (tmp_path / 'out.csv').read_bytes() == done


@pytest.mark.parametrize('started_at', [1e3 * 1.8e9, 12345.0, float('nan'), 4e9])
def test_a_started_at_that_is_no_recent_unix_time_is_refused(tmp_path: Path, started_at: float) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    with pytest.raises(KitError, match='started_at'):
        submit(loud_tagger(), tmp_path / 'in', tmp_path / 'o.csv', deadline='1m', started_at=started_at, progress=False)


def test_in_a_notebook_a_network_that_never_returns_is_left_in_time(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    blocked, others = threading.Event(), set(threading.enumerate())
    tagger = loud_tagger(LoudBands(before=lambda spec: blocked.wait() and None))
    began = time.time()
    submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', deadline='3s', started_at=began, progress=False)
    assert time.time() < began + 3.0
    _, rows = read_scores(tmp_path / 'out.csv')
    assert rows['a.wav'].tolist() == nine_digits([0.1, 0.2, 0.3])
    left = (tmp_path / 'out.csv').read_bytes()
    blocked.set()
    for thread in set(threading.enumerate()) - others:
        thread.join(timeout=5.0)
    assert (tmp_path / 'out.csv').read_bytes() == left, 'the abandoned thread wrote after the call had returned'


def test_with_a_deadline_a_wrapped_network_that_behaves_is_used(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    done = submit(
        loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', deadline='1m', started_at=time.time(), progress=False
    )
    assert done.report['rows_all_models'] == 1 and done.report['state'] == 'finished'


@pytest.mark.parametrize('others', [0, 1])
def test_with_a_deadline_a_network_that_raises_still_ends_with_a_csv(tmp_path: Path, others: int) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])

    def explode(spec: Tensor) -> None:
        raise RuntimeError('boom')

    taggers = [loud_tagger(LoudBands(before=explode)), *(loud_tagger() for _ in range(others))]
    report = submit(
        taggers, tmp_path / 'in', tmp_path / 'out.csv', deadline='1m', started_at=time.time(), progress=False
    ).report
    assert [model['failure'] for model in report['models']] == ['boom', *[None] * others]
    assert report['rows_with_prior'] == 1 - others and len(read_scores(tmp_path / 'out.csv')[1]) == 1


def hanging_decoder(release: threading.Event) -> Decoder:
    '''A decoder for which files called hang are stuck, header and all.'''

    def guard(do: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def run(path: Path) -> Any:
            if 'hang' in path.name:
                release.wait()
            return do(path)

        return run

    return Decoder('hanging', guard(DECODERS[0].read), guard(DECODERS[0].duration_s))


def test_a_file_that_hangs_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['hang.wav', 'x.wav'])
    release = threading.Event()
    decoder = Decoder('hanging', hanging_decoder(release).read, DECODERS[0].duration_s)
    paths, frontends = sorted((tmp_path / 'in').iterdir()), {'': loud_tagger().frontend}
    loader = SpectrogramLoader(paths, frontends, torch.device('cpu'), threads=1, decoders=[decoder], timeout_s=0.05)
    loader.read_headers()
    good, specs = loader.specs(loader.chunks[0], '')
    release.set()
    loader.close()
    assert good == [1] and len(specs) == 1 and 'given up' in loader.failures[0]


def test_many_files_that_hang_leave_time_for_the_others(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', [f'hang_{k:02d}.wav' for k in range(12)] + ['x.wav', 'y.wav'])
    release = threading.Event()
    report = submit(
        loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', deadline='4s', started_at=time.time(), threads=2,
        decoders=[hanging_decoder(release)], progress=False,
    ).report  # fmt: skip
    release.set()
    _, rows = read_scores(tmp_path / 'out.csv')
    assert [name for name in rows if rows[name].tolist() != nine_digits([0.1, 0.2, 0.3])] == ['x.wav', 'y.wav']
    assert report['rows_all_models'] == 2


def test_one_slow_file_does_not_use_up_the_time_that_is_left(tmp_path: Path) -> None:
    '''One file of 40 takes 100 s to read; batches take a second; 300 s are plenty.'''
    write_folder(tmp_path / 'in', [f'{i:02d}.wav' for i in range(40)], samples=900)
    clock = HandClock(1000.0)

    def read(path: Path) -> Sound:
        clock.time += 100.0 if path.name == '07.wav' else 0.0
        return DECODERS[0].read(path)

    models = [Ticking(clock, 0.2), Ticking(clock, 0.5)]
    options = SubmitOptions(
        [loud_tagger(network) for network in models], tmp_path / 'in', tmp_path / 'out.csv', batch_frames=1,
        decoders=[Decoder('slow', read, DECODERS[0].duration_s)], progress=False,
    )  # fmt: skip
    report = run_submission(options, Deadline(1000.0 + 250.0, clock))
    assert report['rows_all_models'] == 40


def test_one_sound_is_predicted_and_a_deadline_may_be_years_away(tmp_path: Path) -> None:
    output = predict_clips(loud_tagger(), [Sound(noise(4000), 8000)])
    assert set_deadline('10000h', time.time()).left_s() > 3.5e7 and len(output.names) == 1


# Then the races.


def test_a_file_that_hangs_its_reader_is_skipped_and_the_others_are_predicted(
    races: dict[str, Race], trained: Trained, clips: Path
) -> None:
    race = races['a file hangs its reader']
    result(race)
    _, rows = read_scores(race.out)
    names = sorted(path.name for path in clips.iterdir())
    models = [[trained.mel[0]], [trained.mel[1]], list(trained.mel)]
    wanted = np.array([predict_clips(some, clips).probabilities for some in models])
    for name, choices in zip(names, wanted.swapaxes(0, 1), strict=True):
        assert min(np.abs(choices - rows[name]).max(axis=1)) < 1e-5, 'no model had predicted it'
    assert np.array_equal(rows['hang_0.wav'], rows['hang_2.wav'])


@pytest.mark.parametrize('name', [name for name in DEEDS if 'file' not in name])
def test_a_worker_that_hangs_or_dies_leaves_what_was_done_by_then(
    races: dict[str, Race], trained: Trained, clips: Path, name: str
) -> None:
    race = races[name]
    output = result(race)
    assert 'WARNING' in output
    _, rows = read_scores(race.out)
    assert len(rows) == 14
    singles = [predict_clips(checkpoint, clips).probabilities for checkpoint in trained.mel]
    found = np.array(list(rows.values()))
    assert min(np.abs(found - single).max() for single in singles) < 1e-5, 'one model had predicted everything'
    assert race.out.with_suffix('.json').is_file()


def test_in_a_script_a_network_that_waits_for_ever_is_left(races: dict[str, Race]) -> None:
    race = races['in a script, a network waits for ever']
    assert 'RETURNED' in result(race)
    assert len(read_scores(race.out)[1]) == 14


def test_in_a_script_a_network_that_holds_the_interpreter_lock_cannot_miss_the_deadline(races: dict[str, Race]) -> None:
    race = races['in a script, a network holds the interpreter lock']
    result(race)
    assert len(read_scores(race.out)[1]) == 14


def test_files_that_end_the_process_cost_no_rows_but_their_own(
    races: dict[str, Race], trained: Trained, clips: Path
) -> None:
    race = races['files end the process']
    output = result(race)
    assert 'the work goes on' in output and 'WARNING' in output
    _, rows = read_scores(race.out)
    names = sorted(path.name for path in clips.iterdir())
    wanted = predict_clips(list(trained.mel), clips).probabilities
    np.testing.assert_allclose([rows[name] for name in names], wanted, rtol=0, atol=1e-5)
    report = json.loads(race.out.with_suffix('.json').read_bytes())
    assert set(report['files_failed']) == {f'poison_{k}.wav' for k in range(3)}
    assert all('ended with code -11' in reason for reason in report['files_failed'].values())
    assert report['state'] == 'finished' and report['rows_with_prior'] == 3
