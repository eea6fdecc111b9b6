'''Law 7: a kill at any instant leaves a whole CSV, and the same command ends where it would have ended.'''

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger
from tests.behaviour.trained import LoudBands, loud_tagger, noise, read_scores, write_folder, write_template, write_wav

TIMEOUT_S = 60.0


@pytest.fixture
def start():
    '''Start a process that is ended, whatever happens, when the test is over.'''
    children = []

    def start_child(command, **environment):
        environment = os.environ | {'OMP_NUM_THREADS': '1'} | environment
        quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        children.append(subprocess.Popen(command, env=environment, start_new_session=True, **quiet))
        return children[-1]

    yield start_child
    for child in children:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_until(has_happened, child):
    '''Poll until something happened (true) or the process ended without it (false); fails after a minute.'''
    limit = time.monotonic() + TIMEOUT_S
    while time.monotonic() < limit:
        if has_happened():
            return True
        if child.poll() is not None:
            return bool(has_happened())
        time.sleep(0.001)
    raise AssertionError('the process did nothing for a minute')


def state_files(out):
    '''The predictions kept beside a CSV, part files left out.'''
    return sorted(out.with_name(out.name + '.state').glob('[!.]*.npz'))


def alive(pid):
    '''Whether a process runs and is no zombie.'''
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


# Kills


def test_killed_again_and_again_the_same_command_ends_with_the_same_bytes(kit_command, trained, clips, tmp_path, start):
    names = [path.name for path in sorted(clips.iterdir())[::-1]]
    template = write_template(tmp_path / 't.csv', names, trained.classes)
    reference, out = tmp_path / 'reference.csv', tmp_path / 'killed' / 'out.csv'
    base = [*kit_command, 'submit', '--audio', str(clips), '--template', str(template), '--no-progress']
    base += ['--checkpoints', *trained.all]
    whole = start([*base, '--out', str(reference)])
    for happened in (out.exists, lambda: state_files(out), lambda: len(state_files(out)) >= 2):
        child = start([*base, '--out', str(out)])
        assert wait_until(happened, child)
        child.send_signal(signal.SIGKILL)
        child.wait()
        header, rows = read_scores(out)
        assert header[1:] == list(trained.classes) and list(rows) == names
    assert whole.wait(timeout=TIMEOUT_S) == 0
    assert start([*base, '--out', str(out)]).wait(timeout=TIMEOUT_S) == 0
    assert out.read_bytes() == reference.read_bytes()
    assert not list(out.parent.rglob('*.part'))


def test_a_worker_ends_with_its_killed_supervisor(kit_command, trained, clips, tmp_path, start):
    '''The worker writes its process id, and would read its first clip for ever.'''
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text(
        'import os, threading, soundfile\n'
        'def hang(*arguments, **options):\n'
        "    with open(os.environ['PID_FILE'] + '.part', 'w') as handle:\n"
        '        handle.write(str(os.getpid()))\n'
        "    os.replace(os.environ['PID_FILE'] + '.part', os.environ['PID_FILE'])\n"
        '    threading.Event().wait()\n'
        'soundfile.SoundFile = hang\n'
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path / 'site'), os.environ.get('PYTHONPATH', '')]))
    words = ['--audio', str(clips), '--out', str(tmp_path / 'out.csv'), '--deadline', '10m', '--no-progress']
    command = [*kit_command, 'submit', '--checkpoints', trained.mel[0], *words]
    child = start(command, PYTHONPATH=paths, PID_FILE=str(tmp_path / 'pid'))
    assert wait_until((tmp_path / 'pid').exists, child)
    worker = int((tmp_path / 'pid').read_text())
    child.send_signal(signal.SIGKILL)
    child.wait()
    limit = time.monotonic() + 1.0
    try:
        while alive(worker) and time.monotonic() < limit:
            time.sleep(0.01)
        assert not alive(worker)
    finally:
        with contextlib.suppress(OSError):
            os.kill(worker, signal.SIGKILL)


class Stop(BaseException):
    '''What a kill looks like from inside.'''


class Counting(LoudBands):
    '''A network that counts its batches, and ends the process at one of them.'''

    def __init__(self, ends_at=None):
        super().__init__(3)
        self.batches, self.ends_at = 0, ends_at

    def forward(self, spec):
        self.batches += 1
        if self.batches == self.ends_at:
            raise Stop
        return super().forward(spec)


def test_killed_at_any_batch_of_any_model_the_rest_is_done_and_nothing_twice(tmp_path):
    write_folder(tmp_path / 'in', [f'{i:02d}.wav' for i in range(60)], samples=900)
    paths = [tmp_path / f'custom_{k}.pt' for k in range(3)]
    for k, path in enumerate(paths):
        network = LoudBands(3)
        torch.nn.init.constant_(network.scale, 0.2 + 0.1 * k)
        save_tagger(path, loud_tagger(network, name=f'net{k}'))

    def once(out, ends_at=(None, None)):
        '''Submit; batches that each model computed.'''
        networks = [Counting(ends_at[1] if ends_at[0] == k else None) for k in range(3)]
        builders = {f'net{k}': (lambda k=k: networks[k]) for k in range(3)}
        with contextlib.suppress(Stop):
            submit(paths, tmp_path / 'in', tmp_path / out, networks=builders, batch_frames=40, progress=False)
        return [network.batches for network in networks]

    whole = once('reference.csv')
    assert min(whole) >= 5
    for model in range(3):
        for batch in (1, 2, whole[0]):
            out = f'killed_{model}_{batch}.csv'
            once(out, ends_at=(model, batch))
            assert len(read_scores(tmp_path / out)[1]) == 60
            assert once(out)[:model] == [0] * model, 'a finished model computed again'
            assert (tmp_path / out).read_bytes() == (tmp_path / 'reference.csv').read_bytes()
    assert once('reference.csv') == [0, 0, 0]


# What changed in between


@pytest.fixture
def small(clips, tmp_path):
    '''A few of the clips, free to be changed.'''
    folder = tmp_path / 'in'
    folder.mkdir()
    for path in sorted(clips.iterdir())[3:9]:
        shutil.copy(path, folder)
    return folder


def submit_quietly(checkpoints, folder, out, **options):
    '''Submit without a progress bar; the CSV's bytes.'''
    submit(checkpoints, folder, out, progress=False, **options)
    return out.read_bytes()


def test_files_of_one_content_make_no_difference_to_a_second_run(trained, tmp_path):
    '''25 clips of one length make a chunk of 24 and one of 1, whose batches round differently.'''
    for i in range(24):
        write_wav(tmp_path / 'in' / f'{i:02d}.wav', noise(24000, seed=i))
        shutil.copy(tmp_path / 'in' / f'{i:02d}.wav', tmp_path / 'in' / f'copy_{i:02d}.wav')
    write_wav(tmp_path / 'in' / '0_first.wav', noise(24000, seed=99))
    first, second = (submit_quietly(trained.all, tmp_path / 'in', tmp_path / 'out.csv') for _ in range(2))
    assert first == second


def test_files_that_changed_or_came_in_between_are_predicted_anew(trained, small, tmp_path):
    out = tmp_path / 'out.csv'
    submit_quietly(trained.all, small, out)
    paths = sorted(small.iterdir())
    first = paths[0].read_bytes()
    paths[0].write_bytes(paths[3].read_bytes())
    paths[3].write_bytes(first)
    paths[1].write_bytes(b'no longer a sound')
    write_wav(paths[2], noise(9000, seed=77))
    report = submit(trained.all, small, out, progress=False).report
    assert [model['failure'] for model in report['models']] == [None] * len(trained.all)
    submit_quietly(trained.all, small, tmp_path / 'fresh.csv')
    again, fresh = (read_scores(path)[1] for path in (out, tmp_path / 'fresh.csv'))
    np.testing.assert_allclose(list(again.values()), list(fresh.values()), rtol=0, atol=1e-6)


def test_a_checkpoint_that_changed_behind_its_name_is_predicted_anew(trained, small, tmp_path):
    for source in (*trained.mel, trained.windows):
        shutil.copy(source, tmp_path / 'model.pt')
        again = submit_quietly(tmp_path / 'model.pt', small, tmp_path / 'out.csv')
        assert again == submit_quietly(source, small, tmp_path / f'fresh_{Path(source).stem}.csv')


def test_other_inference_settings_do_not_reuse_the_old_state(trained, small, tmp_path):
    windows = {'mode': 'windows', 'window_s': 1.0, 'hop_s': 0.5}
    settings = [{}, windows, windows | {'hop_s': 0.3}, {'precision': 'bfloat16'}, {'pool': 'mean'}, {}]
    for k, options in enumerate(settings):
        again = submit_quietly(trained.mel[0], small, tmp_path / 'out.csv', **options)
        assert again == submit_quietly(trained.mel[0], small, tmp_path / f'fresh_{k}.csv', **options), options


def test_another_calibration_of_the_same_weights_is_used(trained, small, tmp_path):
    tagger = load_tagger(trained.mel[0])
    calibration = tagger.card.calibration
    scores = []
    for added in (0.0, 1.0):
        moved = replace(calibration, offset=calibration.offset + added)
        save_tagger(tmp_path / 'fold_0.pt', Tagger(replace(tagger.card, calibration=moved), tagger.network))
        submit_quietly(tmp_path / 'fold_0.pt', small, tmp_path / 'out.csv')
        scores.append(read_scores(tmp_path / 'out.csv')[1])
    before, after = scores
    assert all((after[name] > before[name]).all() for name in before)


def test_part_files_rubbish_and_cut_states_are_never_used_as_results(trained, small, tmp_path):
    out, other = tmp_path / 'out.csv', tmp_path / 'other.csv'
    fresh = submit_quietly(trained.mel[0], small, tmp_path / 'fresh.csv')
    submit_quietly(trained.mel[1], small, other)
    state = tmp_path / 'out.csv.state'
    state.mkdir()
    name = state_files(tmp_path / 'fresh.csv')[0].name
    (state / f'.{name}.part').write_bytes(state_files(other)[0].read_bytes())
    (state / 'rubbish.npz').write_bytes(b'rubbish')
    (tmp_path / '.out.csv.part').write_text('fname,nothing\nhalf a li')
    out.write_text('an old half-written thi')
    assert submit_quietly(trained.mel[0], small, out) == fresh
    kept = state / name
    kept.write_bytes(kept.read_bytes()[:-20])
    assert submit_quietly(trained.mel[0], small, out) == fresh
