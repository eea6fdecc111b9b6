'''Processes that share the work, of --workers or of torchrun, end where one process ends.'''

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import file_identity
from kit.core.ranks import count_workers, gather, start_workers, take_share
from kit.core.runtime import WORKER_MARK, cpu_count, get_rank, pick_device, taken_cores
from kit.demo import make_toy_set
from kit.infer.cache import PredictionCache
from kit.infer.job import SubmitOptions
from kit.infer.predictor import WindowLogits
from kit.infer.submission import merge_shares, run_submission
from tests.behaviour.trained import Trained, read_scores

TINY = [
    'frontend.sample_rate=8000', 'frontend.hop_length=200', 'frontend.n_fft=400', 'frontend.n_mels=32',
    'network.blocks=3', 'network.width=4', 'crop_s=1.0', 'epochs=2', 'n_folds=3', 'seeds=2',
]  # fmt: skip


@pytest.fixture(scope='module')
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    '''A toy task whose test has more than two chunks of files.'''
    folder = tmp_path_factory.mktemp('task')
    make_toy_set(folder, clips=60, test=60, seed=5)
    return folder


def run(command: list[str], *words: object) -> str:
    '''Run a command line in a new process and return what it printed; it must end well.'''
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [*command, *map(str, words), '--no-progress'], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_module(kit_command: list[str]) -> list[str]:
    '''Start the command line as `%run` does: of an imported module, whose classes are not those of the workers.'''
    code = 'import sys; from kit.cli import run_command; from kit.commands import COMMANDS'
    if kit_command[1] != '-m':
        bundle = Path(kit_command[1])
        code = (
            f'import sys; sys.path.insert(0, {str(bundle.parent)!r}); from {bundle.stem} import COMMANDS, run_command'
        )
    return [sys.executable, '-c', f'{code}; sys.exit(run_command(COMMANDS, sys.argv[1:]))']


def same_files(one: Path, other: Path, names: list[str]) -> bool:
    '''Whether files of two folders have the same bytes.'''
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def join_group(monkeypatch: pytest.MonkeyPatch, rank: int, peers: str = '') -> None:
    '''Make this process one of two that share the work.'''
    numbers = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2, 'LOCAL_WORLD_SIZE': 2, 'MASTER_PORT': 1}
    for name, value in numbers.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv('AUDIOTAG_KIT_PEERS', peers)


@pytest.mark.parametrize('deadline', [[], ['--deadline', '120s']], ids=['without', 'deadline'])
def test_three_workers_write_the_submission_of_one_process(
    kit_command: list[str], trained: Trained, task: Path, tmp_path: Path, deadline: list[str]
) -> None:
    words = ['submit', '--checkpoints', *trained.all, '--audio', task / 'test', *deadline]
    words += ['--template', task / 'sample_submission.csv', '--device', 'cpu', '--out']
    run(kit_command, *words, tmp_path / 'one.csv')
    run(kit_command, *words, tmp_path / 'three.csv', '--workers', 3)
    assert same_files(tmp_path, tmp_path, ['one.csv'])
    assert (tmp_path / 'one.csv').read_bytes() == (tmp_path / 'three.csv').read_bytes()
    report = json.loads((tmp_path / 'three.json').read_text())
    assert (report['processes'], report['state'], report['rows_all_models']) == (3, 'finished', 60)


def test_workers_train_the_networks_of_one_process(kit_command: list[str], task: Path, tmp_path: Path) -> None:
    words = ['train', '--recipe', 'max-pyramid-mel', '--table', task / 'train.csv', '--audio', task / 'train']
    words += ['--device', 'cpu', '--set', *TINY, '--out']
    run(kit_command, *words, tmp_path / 'one')
    run(as_module(kit_command), *words, tmp_path / 'two', '--workers=2')
    names = sorted(path.name for path in (tmp_path / 'one').glob('fold_*.pt'))
    assert len(names) == 6
    assert same_files(tmp_path / 'one', tmp_path / 'two', [*names, 'oof.csv', 'folds.csv', 'recipe.json'])
    rows = [(tmp_path / run / 'history.csv').read_text().splitlines() for run in ('one', 'two')]
    without_seconds = [[line.rpartition(',')[0] for line in of_run] for of_run in rows]
    assert without_seconds[0] == without_seconds[1]


def test_torchrun_predicts_out_of_fold_and_relabels_as_one_process(
    kit_command: list[str], trained: Trained, tmp_path: Path
) -> None:
    run_folder = Path(trained.mel[0]).parent
    audio = run_folder.parent / 'data' / 'train'
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '-m', '--', 'kit']
    if kit_command[1] != '-m':
        torchrun = [*torchrun[:-3], '--', kit_command[1]]
    for name, command in (('one', kit_command), ('two', torchrun)):
        shutil.copytree(run_folder, tmp_path / name)
        words = ['--run', tmp_path / name, '--audio', audio, '--device', 'cpu']
        run(command, 'oof', *words)
        run(command, 'relabel', *words, '--out', tmp_path / name / 'labels', '--method', 'windows')
    names = ['oof.csv', 'fold_0.pt', 'fold_1.pt', 'labels/table.csv', 'labels/soft.csv']
    assert same_files(tmp_path / 'one', tmp_path / 'two', names)


def test_the_first_process_takes_what_others_predicted_and_does_what_dead_ones_left(
    trained: Trained, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    '''Law 7: what a process wrote before it was killed is used; the rest is predicted by the one that is left.'''
    template = task / 'sample_submission.csv'

    def submit_to(name: str) -> dict[str, object]:
        out = tmp_path / name
        options = SubmitOptions(trained.mel, task / 'test', out, template, device='cpu', progress=False)
        return run_submission(options, Deadline(time.time() + 100))

    submit_to('one.csv')
    join_group(monkeypatch, 1)
    submit_to('two.csv')
    assert not (tmp_path / 'two.csv').exists()
    shares = sorted(path.name for path in (tmp_path / 'two.csv.state' / '1').iterdir())
    assert len(shares) == 3 and 'share.json' in shares
    shutil.copytree(tmp_path / 'two.csv.state', tmp_path / 'wrong.csv.state')
    for lost in (shares[0], 'share.json'):  # it died before it had predicted all
        (tmp_path / 'two.csv.state' / '1' / lost).unlink()
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    join_group(monkeypatch, 0, str(dead.pid))
    assert submit_to('two.csv')['rows_all_models'] == 60
    assert (tmp_path / 'one.csv').read_bytes() == (tmp_path / 'two.csv').read_bytes()
    path = tmp_path / 'wrong.csv.state' / '1' / shares[0]
    with np.load(path) as arrays:
        wrong = {name: arrays[name] for name in arrays}
    np.savez(path, **wrong | {'logits': wrong['logits'] + 5})
    submit_to('wrong.csv')
    _, right = read_scores(tmp_path / 'one.csv')
    _, other = read_scores(tmp_path / 'wrong.csv')
    n_changed = sum(bool((right[name] != other[name]).any()) for name in right)
    assert 0 < n_changed < 60, 'the rows of the other process come from its file'


def test_predictions_of_other_processes_count_as_soon_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ('a', 'b', 'c')]
    for file in files:
        file.write_text(file.name)
    member = SimpleNamespace(
        cache=PredictionCache.open(tmp_path / 'model.npz'), coarse=PredictionCache(), predicted={0}
    )
    vars(member).update(failed_clips={}, failure=None, finished=False)
    added: list[int] = []
    rows = SimpleNamespace(
        members=[member],
        plan=SimpleNamespace(rows_of={0: [0], 1: [1], 2: [2]}),
        add=lambda member, clip, logits: added.append(clip),
    )
    assert merge_shares(rows, files, {}) and not member.finished
    join_group(monkeypatch, 1)
    other = PredictionCache.open(tmp_path / 'model.npz')
    other.digests[file_identity(files[1])] = 'b'
    other.add([('b', WindowLogits(np.zeros((1, 2), np.float32), ((0, 1),)))])
    other.flush()
    assert merge_shares(rows, files, {}) and (added, member.finished) == ([1], False)
    assert not merge_shares(rows, files, {2: 'cannot be read'}) and (added, member.finished) == ([1], True)


def test_a_dead_process_ends_the_wait_for_its_networks_with_one_line(tmp_path: Path) -> None:
    words = ['train', '--recipe', 'max-pyramid-mel', '--table', str(tmp_path / 'none.csv'), '--audio', '.']
    with pytest.raises(KitError, match=r'none\.csv'), start_workers(2, [*words, '--out', str(tmp_path)]):
        gather(0)
    assert get_rank() == 0 and 'WORLD_SIZE' not in os.environ


def test_processes_share_cores_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER_MARK, raising=False)
    alone = cpu_count()
    join_group(monkeypatch, 1)
    assert cpu_count() == max(1, alone // 2)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    # In the bundle, the name that the function calls is not the one of the file.
    monkeypatch.setitem(pick_device.__globals__, 'device_problem', lambda device: None)
    assert pick_device()[0] == torch.device('cuda', 1)
    assert take_share(range(5)) == [1, 3]
    monkeypatch.delenv('MASTER_PORT')  # a variable RANK of another program alone means nothing
    assert take_share(range(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('workers', [0, 'many'])
def test_a_number_of_workers_below_one_is_refused(workers: int | str) -> None:
    with pytest.raises(KitError, match='workers is a number of processes from 1'), start_workers(workers, []):
        pass


def test_workers_auto_are_one_per_gpu_and_one_per_core_only_where_others_use_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {'cpu_count': lambda: 4, 'device_problem': lambda gpu: None if gpu.index < 2 else 'old'}.items():
        monkeypatch.setitem(count_workers.__globals__, name, value)
    for taken, expected in ((0.1, 1), (0.8, 4)):
        monkeypatch.setitem(count_workers.__globals__, 'taken_cores', lambda taken=taken: taken)
        assert count_workers('auto') == expected
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    assert count_workers('auto') == 2


def test_the_cores_of_others_are_what_a_thread_per_core_does_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, 'perf_counter', lambda: next(clock))  # each look at the clock takes a second
    monkeypatch.setattr(time, 'thread_time', lambda: 0.0)
    assert taken_cores(1.0) == cpu_count()
