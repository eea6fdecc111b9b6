'''Submit many files through a fake decoder: `python -m tests.benchmarks growth [FILES ...]`.'''

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kit.audio.decode import Decoder, Sound
from kit.infer.submit import submit
from kit.models.checkpoint import save_tagger
from kit.train.recipes import find_recipe
from tests.benchmarks.bench_frames import make_tagger

SETTINGS = 'frontend.sample_rate=8000 frontend.n_fft=256 frontend.hop_length=256 frontend.n_mels=16 network.width=4'
FILES_PER_FOLDER = 10_000


def decode(path: Path) -> Sound:
    '''Return a second of noise that depends on the file's name.'''
    generator = np.random.default_rng(int(path.stem))
    return Sound(generator.normal(0, 0.1, 8000).astype(np.float32), 8000)


def submit_fakes(count: int) -> None:
    '''Submit in this process, and print the seconds of each stage and the peak of memory.'''
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            part = folder / 'audio' / f'{number // FILES_PER_FOLDER:04d}'
            if number % FILES_PER_FOLDER == 0:
                part.mkdir(parents=True)
            (part / f'{number}.wav').write_text(str(number))  # no two alike
        recipe = find_recipe('max-pyramid-mel', small=True, overrides=[*SETTINGS.split(), 'network.blocks=2'])
        save_tagger(folder / 'fold_0.pt', make_tagger(recipe))
        start = time.perf_counter()
        fakes = [Decoder('fake', decode, lambda _: 1.0)]
        result = submit(folder / 'fold_0.pt', folder / 'audio', folder / 'out.csv', decoders=fakes, progress=False)
        seconds = time.perf_counter() - start
    assert result.report['rows_all_models'] == count
    stages = ', '.join(f'{stage} {spent:.1f}' for stage, spent in result.report['seconds'].items())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f'{count} files: {seconds:.1f} s ({stages}), {peak_mb:.0f} MB', flush=True)


def main(*counts: int) -> None:
    '''Submit each number of files in a process of its own.'''
    for count in counts or (1_000, 10_000, 100_000):
        words = [sys.executable, '-c', f'from tests.benchmarks.bench_growth import *; submit_fakes({count})']
        subprocess.run(words, check=True)
