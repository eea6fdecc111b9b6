'''Compare pools over windows of two lengths out of fold: `python -m tests.benchmarks.pools [RECIPE ...]`.

The runs are those of tests/benchmarks/recipes.py, which trains them if they are not there. They predict whole
recordings; each way is compared with the run's own.
'''

import sys

from kit.train.oof import predict_oof
from tests.benchmarks.cells import RUNS_FOLDER, make_task, run_cells
from tests.benchmarks.recipes import task_of
from tests.benchmarks.study import QUIET

POOLS = ('mean', 'geometric', 'max', 'snr')
# Seconds of a window; the next starts after half of them.
WINDOWS = {'two-stage': (2.0, 4.0), 'freq-coord': (4.0, 8.0)}
COLUMNS = ('run', 'windows', 'pool', 'lwlrap', "gain over the run's own way, 95 %")


def compare_pools(name: str) -> None:
    '''Print the rows of one run.'''
    folder = RUNS_FOLDER / 'recipes' / name
    audio = make_task(task_of(name)) / ('train_curated' if task_of(name) == 'tagging' else 'train')
    for window_s in WINDOWS[name]:
        way = {'mode': 'windows', 'window_s': window_s, 'hop_s': window_s / 2}
        result = predict_oof(folder, audio, pool=POOLS, **way, **QUIET)
        if window_s == WINDOWS[name][0]:
            print(f'| `{name}` | own | | {result.score:.3f} | |')
        for pool, variant in zip(POOLS, result.variants, strict=True):
            gain = variant.gain
            interval = f'{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})'
            print(f'| `{name}` | {window_s:g} s | {pool} | {variant.score:.3f} | {interval} |', flush=True)


def main(arguments: list[str]) -> None:
    '''Train the runs that are missing, and print one table.'''
    names = arguments or list(WINDOWS)
    for name in names:
        make_task(task_of(name))
    missing = [name for name in names if not (RUNS_FOLDER / 'recipes' / name / 'oof.csv').is_file()]
    run_cells('tests.benchmarks.recipes', missing, RUNS_FOLDER / 'recipes' / 'cells.csv', minutes=24 * 60)
    print(f'| {" | ".join(COLUMNS)} |')
    print('|---' * len(COLUMNS) + '|')
    for name in names:
        compare_pools(name)


if __name__ == '__main__':
    main(sys.argv[1:])
