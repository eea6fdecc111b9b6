'''Compare threads with processes beside busy neighbours: `python -m tests.benchmarks workers [REPEATS]`.

Two EfficientNet-B0 and two pyramids of random weights predict soundscapes of a minute by the command line, in one
process with a thread per core, and in a process of one thread per core.
'''

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from kit.core.runtime import cpu_count
from kit.models.checkpoint import save_tagger
from kit.train.recipes import find_recipe
from tests.benchmarks.bench_frames import make_tagger
from tests.benchmarks.cells import ROOT, RUNS_FOLDER, make_task

FOLDER = RUNS_FOLDER / 'workers'
B0 = 'network={"family":"timm","name":"tf_efficientnet_b0.ns_jft_in1k","head":{"pool":"attention","hidden":512}}'
SYSTEMS = {'EfficientNet-B0': ('sed', [B0]), 'pyramid': ('max-pyramid-mel', ['network.width=48'])}
SOUNDSCAPES = 32
BURN = 'while True: pass'


@contextlib.contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    '''Keep `count` cores busy with other processes.'''
    neighbours = [subprocess.Popen([sys.executable, '-c', BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def submit_seconds(name: str, audio: Path, workers: int) -> float:
    '''The seconds of a submission, from the start of its process to its end.'''
    out = FOLDER / name / 'out.csv'
    shutil.rmtree(f'{out}.state', ignore_errors=True)
    words = ['submit', '--checkpoints', f'{FOLDER / name}/*.pt', '--audio', str(audio), '--out', str(out)]
    words += ['--rows', '5s', '--mode', 'windows', '--window-s', '5', '--hop-s', '5']
    words += ['--no-progress', '--workers', str(workers)]
    start = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / 'audiotag_kit.py'), *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(repeats: int = 3) -> None:
    '''Print the seconds of both ways, and their ratio, beside 0, 1 and 2 busy processes.'''
    subprocess.run([sys.executable, str(ROOT / 'build_single_file.py')], check=True, stdout=subprocess.DEVNULL)
    soundscapes = sorted((make_task('birdclef') / 'birdclef-2026' / 'test_soundscapes').iterdir())
    audio = FOLDER / 'audio'
    audio.mkdir(parents=True, exist_ok=True)
    for path in soundscapes[:SOUNDSCAPES]:
        shutil.copy(path, audio)
    print(
        '| networks | busy neighbours | threads, s | processes, s | threads against processes |\n|---|---|---|---|---|'
    )
    for name, (recipe, changes) in SYSTEMS.items():
        (FOLDER / name).mkdir(exist_ok=True)
        for fold in (0, 1):
            torch.manual_seed(fold)
            save_tagger(FOLDER / name / f'fold_{fold}.pt', make_tagger(find_recipe(recipe, overrides=changes)))
        for count in (0, 1, 2):
            with busy_neighbours(count):
                turns = [[submit_seconds(name, audio, w) for w in (1, cpu_count())] for _ in range(repeats)]
            threads, processes = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
            ratios = [one / many for one, many in turns]
            spread = f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
            print(f'| {name} | {count} | {threads:.1f} | {processes:.1f} | {spread} |', flush=True)
