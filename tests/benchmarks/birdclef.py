'''BirdCLEF 2026's folder, made from ESC-10, to its CSV: `python -m tests.benchmarks.birdclef [SEEDS] [options]`.

Each arm trains two folds, by three seeds unless told otherwise, and is scored on 40 soundscapes of a minute. Finished
cells are kept in runs/birdclef/cells.csv, their predictions beside it. With `options`, other ways to use pseudo-labels
are arms, too.
'''

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import torch

from kit.commands import train_by_name
from kit.infer.submit import submit
from kit.labels.bootstrap import Interval, group_numbers, percentile_interval
from kit.labels.layouts import read_competition
from kit.labels.metrics import compute_metric, metric_statistic
from kit.labels.table import label_targets
from tests.benchmarks.cells import RUNS_FOLDER, make_task, print_figures, run_cells
from tests.benchmarks.study import QUIET

FOLDER = RUNS_FOLDER / 'birdclef'
METRICS = ('macro_auc', 'padded_cmap')
STEPS = {'smooth': [0.5, 0.25], 'top_mean': 2, 'top_power': 0.4}
# Each arm's recipe, and what it is compared with.
ARMS = {
    'max-pyramid-mel': ('max-pyramid-mel', None),
    'sed, clips alone': ('sed', None),
    'sed': ('sed', 'sed, clips alone'),
    'sed-rounds': ('sed-rounds', 'sed'),
    'sed-rounds and steps': (None, 'sed-rounds'),
}
OPTIONS = {
    'by sum': ['sampling.sample_by_probs=clips'],
    'powers': ['self_training.iterations=2', 'self_training.powers=[1,1.5]'],
    'mixed in': ['mixup.pseudo_p=0.5'],
    'teacher': [],  # the arm max-pyramid-mel of the same seed labels, too
    'distilled': ['distill_weight=0.5'],
}
OPTION_ARMS = {f'sed-rounds, {name}': ('sed-rounds', 'sed-rounds') for name in OPTIONS}


def train_cell(cell: str) -> None:
    '''Train one arm with one seed, and write its submission, with and without the steps after the models.'''
    torch.set_num_threads(1)
    start = time.process_time()
    arm, _, seed = cell.rpartition(' ')
    root = make_task('birdclef') / 'birdclef-2026'
    folder = FOLDER / cell.replace(' ', '-')
    recipe, _ = (ARMS | OPTION_ARMS)[arm]
    option = arm.partition(', ')[2]
    settings = ['n_folds=2', f'seed={seed}', *OPTIONS.get(option, [])]
    if arm == 'sed, clips alone':
        table = read_competition(root, folder / 'tables').table
        frame = pandas.read_csv(table, dtype=str, keep_default_na=False)
        clips = frame[frame['source'] == 'clips'].drop(columns=['begin_s', 'end_s'])
        clips.to_csv(folder / 'clips.csv', index=False)
        words = {'table': str(folder / 'clips.csv'), 'audio': str(root), 'group_column': 'author'}
        settings.append('metric=macro_auc')
    else:
        words = {'competition': str(root)}
    if option == 'teacher':
        words['teacher_runs'] = [str(FOLDER / f'max-pyramid-mel-{seed}' / 'run')]
    assert recipe is not None
    train_by_name(recipe, str(folder / 'run'), small=True, overrides=settings, **words, **QUIET)
    checkpoints = f'{folder}/run/fold_*.pt'
    submit(checkpoints, out=FOLDER / f'{cell}.csv', competition=root, **QUIET)
    if arm == 'sed-rounds':
        out = FOLDER / f'{arm} and steps {seed}.csv'
        submit(checkpoints, out=out, competition=root, **STEPS, **QUIET)
    print_figures(start)


def read_scores(path: Path, ids: Sequence[str]) -> np.ndarray:
    '''Read the scores of some rows. Shape: -> (n, K)'''
    return pandas.read_csv(path, dtype={0: str}).set_index('row_id').loc[list(ids)].to_numpy()


def mean_gain(
    metric: str, truth: np.ndarray, scores: Sequence[np.ndarray], others: Sequence[np.ndarray], groups: list[str]
) -> Interval:
    '''Compute the mean gain over seeds, with its interval over recordings, the same draws for both and all seeds.'''
    pairs = list(zip(scores, others, strict=True))
    statistics = [[metric_statistic(metric, truth, part) for part in pair] for pair in pairs]
    values = [compute_metric(metric, truth, a) - compute_metric(metric, truth, b) for a, b in pairs]

    def statistic(counts: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean([one(counts) - other(counts) for one, other in statistics], axis=0))

    return percentile_interval(float(np.mean(values)), statistic, group_numbers(groups, len(truth)), 1000)


def main(arguments: list[str]) -> None:
    '''Train the arms that are not trained yet, and print the table.'''
    if arguments[:1] == ['--cell']:
        return train_cell(arguments[1])
    numbers = [int(text) for text in arguments if text.isdigit()]
    seeds = range(numbers[0] if numbers else 3)
    arms = ARMS | OPTION_ARMS if 'options' in arguments else ARMS
    task = make_task('birdclef')
    cells = [f'{arm} {seed}' for seed in seeds for arm, (recipe, _) in arms.items() if recipe]
    done = run_cells('tests.benchmarks.birdclef', cells, FOLDER / 'cells.csv', minutes=24 * 60)
    template = pandas.read_csv(task / 'birdclef-2026' / 'sample_submission.csv', dtype={0: str})
    labels = pandas.read_csv(task / 'truth.csv', dtype=str, keep_default_na=False)
    truth = label_targets(list(labels['labels']), list(template.columns[1:]))
    recordings = [name.rpartition('_')[0] for name in labels['row_id']]
    scores = {arm: [read_scores(FOLDER / f'{arm} {seed}.csv', labels['row_id']) for seed in seeds] for arm in arms}
    print('| arm | macro AUC | gain | padded cmAP | gain | processor seconds |')
    print('|---|---|---|---|---|---|')
    for arm, (_, base) in arms.items():
        columns = []
        for metric in METRICS:
            values = [compute_metric(metric, truth, of_seed) for of_seed in scores[arm]]
            gain = mean_gain(metric, truth, scores[arm], scores[base], recordings) if base else None
            columns.append(f'{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})')
            columns.append(f'{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})' if gain else '')
        costs = [done[f'{arm} {seed}']['cpu_s'] for seed in seeds if f'{arm} {seed}' in done]
        columns.append(f'{np.mean(costs):.0f}' if costs else '')
        print(f'| {arm} | {" | ".join(columns)} |')


if __name__ == '__main__':
    main(sys.argv[1:])
