'''Measure speed: `python -m tests.benchmarks [NAME [REPEATS]]`, with a name below; all without one.'''

import platform
import sys
from collections.abc import Callable

import torch

from kit.core.errors import choose
from kit.core.runtime import cpu_count, tune_process
from tests.benchmarks import (
    bench_backends,
    bench_deadline,
    bench_families,
    bench_frames,
    bench_frontend,
    bench_growth,
    bench_import,
    bench_submit,
    bench_workers,
)

BENCHES: dict[str, Callable[..., None]] = {
    'frontend': bench_frontend.main,
    'submit': bench_submit.main,
    'import': bench_import.main,
    'families': bench_families.main,
    'frames': bench_frames.main,
    'backends': bench_backends.main,
    'deadline': bench_deadline.main,
    'growth': bench_growth.main,
    'workers': bench_workers.main,
}


def main(arguments: list[str]) -> None:
    '''Run one benchmark, or all of them.'''
    tune_process()
    processor = platform.processor() or platform.machine()
    print(f'{processor}, {cpu_count()} cores, torch {torch.__version__}')
    names = arguments[:1] or list(BENCHES)
    options = [int(argument) if argument.isdigit() else argument for argument in arguments[1:]]
    for name in names:
        choose('benchmark', name, BENCHES)(*options)


if __name__ == '__main__':
    main(sys.argv[1:])
