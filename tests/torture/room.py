'''What the faults share: children forked from a warm process, a small trained ensemble, and the count of what held.'''

import contextlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from kit.cli import run_command
from kit.commands import COMMANDS
from kit.core.errors import KitError
from kit.demo import make_toy_set
from kit.models.checkpoint import open_checkpoint
from kit.train.recipes import find_recipe
from kit.train.run import train_run

TINY = [
    'frontend.sample_rate=8000',
    'frontend.hop_length=200',
    'frontend.n_fft=400',
    'frontend.n_mels=16',
    'network.blocks=3',
    'network.width=4',
    'crop_s=0.5',
    'epochs=6',
    'no_augment_epochs=1',
    'batch_size=8',
    'n_folds=2',
    'validate_every=2',
]


@dataclass
class Fault:
    '''A kind of fault: how often it was tried, and what did not hold.'''

    name: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)
    details: str = ''

    def check(self, held: bool, what: str) -> None:
        '''Count one try.'''
        self.tried += 1
        if not held:
            self.broken.append(what)

    def row(self) -> str:
        '''A row of the table.'''
        return f'| {self.name} | {self.tried:,} | {self.tried - len(self.broken):,} | {self.details} |'


@dataclass(frozen=True)
class Child:
    '''How a forked child ended: its exit code (below 0: signal), what it printed, its seconds and memory.'''

    code: int
    output: str
    seconds: float
    grown_mb: float

    @property
    def is_refusal(self) -> bool:
        '''Whether it ended with one clear line.'''
        return self.code == 2 and 'Traceback' not in self.output and 'audiotag-kit: ' in self.output


def run_forked(work: Callable[[], object], kill_after_s: float = 300.0) -> Child:
    '''Run something in a forked child, and kill it after some seconds.'''
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            for stream in (1, 2):
                os.dup2(write_end, stream)
            sys.stdout = sys.stderr = os.fdopen(1, 'w', 1, encoding='utf-8', closefd=False)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = work()
            code = result if isinstance(result, int) else 0
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(f'\x02{grown / 1024:.1f}', flush=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(write_end)
    chunks = []
    while True:
        left_s = began + kill_after_s - time.perf_counter()
        if left_s <= 0 or not select.select([read_end], [], [], left_s)[0]:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            break
        chunk = os.read(read_end, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    _, status = os.waitpid(pid, 0)
    os.close(read_end)
    output, _, grown = b''.join(chunks).decode('utf-8', 'replace').partition('\x02')
    seconds = time.perf_counter() - began
    return Child(os.waitstatus_to_exitcode(status), output, seconds, float(grown or 0))


def run_verb(words: Sequence[str], kill_after_s: float = 300.0, folder: Path | None = None) -> Child:
    '''Run the command line in a forked child.'''

    def work() -> int:
        if folder:
            os.chdir(folder)
        return run_command(COMMANDS, list(words))

    return run_forked(work, kill_after_s)


def make_room(folder: Path, clips: int = 24) -> Path:
    '''Toy clips, a template, and a trained run of two folds.'''
    import timm  # noqa: F401  (its import takes 2 s, which no child shall be charged for)

    torch.set_num_threads(1)  # no threads of OpenMP, so that children can be forked

    def work() -> None:
        make_toy_set(folder, clips, clips, seed=5)
        recipe = find_recipe('max-pyramid-mel', overrides=TINY)
        train_run(recipe, folder / 'train.csv', folder / 'train', folder / 'run', device='cpu', progress=False)

    if not (folder / 'run' / 'oof.csv').is_file():
        child = run_forked(work)
        if child.code:
            raise KitError(f"the torture's toy run failed: {child.output[-2000:]}")
    return folder


def classes_of(room: Path) -> list[str]:
    '''The classes of the toy set.'''
    return (room / 'sample_submission.csv').read_text('utf-8').splitlines()[0].split(',')[1:]


def is_whole(path: Path) -> bool:
    '''Whether a file of a run or of a submission can be read to its end.'''
    if path.name == 'lock' or path.name.endswith('.part'):
        return True
    if path.suffix == '.pt' and 'state' not in path.parts:
        open_checkpoint(path)
    elif path.suffix == '.pt':
        torch.load(path, weights_only=True)
    elif path.suffix == '.npz':
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays:
                arrays[name].sum() if arrays[name].dtype.kind == 'f' else arrays[name]
    elif path.suffix in ('.csv', '.json'):
        return path.read_bytes().endswith(b'\n')
    return True


def torn_files(folder: Path) -> list[str]:
    '''The files below a folder that are not whole.'''
    torn = []
    for path in sorted(folder.rglob('*')):
        try:
            if path.is_file() and not is_whole(path):
                torn.append(str(path))
        except Exception as error:
            torn.append(f'{path}: {error}')
    return torn
