'''Measure the size of the single file, and what importing it costs on top of torch.

python -m tests.benchmarks import [REPEATS]
'''

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from build_single_file import build
from tests.benchmarks.timing import interleaved_times, print_times, time_ratio


def main(repeats: int = 9) -> None:
    '''Build the single file, import it in fresh processes, and print the times.'''
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / 'audiotag_kit.py'
        bundle.write_text(build(root), encoding='utf-8')

        def run(code: str) -> None:
            subprocess.run([sys.executable, '-c', code], cwd=folder, check=True)

        run('import audiotag_kit')  # compiles it once
        alone = 'import torch'
        both = 'import torch, audiotag_kit'
        times = interleaved_times({alone: lambda: run(alone), both: lambda: run(both)}, repeats)
        print(f'import: the single file has {bundle.stat().st_size / 1000:.1f} kB')
        print_times(times)
        extra = [b - a for a, b in zip(times[alone], times[both], strict=True)]
        span = f'{min(extra):.2f} to {max(extra):.2f}'
        print(f'  on top of torch: {statistics.median(extra):.2f} s ({span}); goal: at most 0.3 s')
        print('  ratio:', time_ratio(times, both, alone))
