'''Train, submit and score every recipe in its small form: `python -m tests.benchmarks.recipes [RECIPE ...]`.

Recipes of the tagging task train two of its four folds, those of the soundscapes task two halves. Finished recipes
are kept in runs/recipes/cells.csv.
'''

import csv
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from kit.infer.submit import submit
from kit.labels.metrics import lwlrap
from kit.train.recipes import RECIPES, find_recipe
from kit.train.self_training import self_train
from tests.benchmarks.cells import RUNS_FOLDER, make_task, print_figures, run_cells
from tests.benchmarks.study import QUIET, read_truth

BOX_RECIPES = ('freq-coord', 'freq-crop')
FOLDS = (1, 2)
COLUMNS = ('recipe', 'task', 'out of fold', 'test', 'class frequencies', 'minutes of two cores')


def task_of(name: str) -> str:
    '''The task that a recipe is made for.'''
    return 'soundscapes' if name in BOX_RECIPES else 'tagging'


def train_cell(name: str) -> None:
    '''Train one recipe, submit and score the submission.'''
    torch.set_num_threads(1)
    start = time.process_time()
    folder = RUNS_FOLDER / 'recipes' / name
    task = make_task(task_of(name))
    recipe = find_recipe(name, small=True)
    if task_of(name) == 'tagging':
        table = task / 'train_curated.csv'
        audio = task / 'train_curated'
        run = self_train(recipe, table, audio, folder, only_folds=FOLDS, **QUIET)
    else:
        boxes = [task / 'train_tp.csv', task / 'train_fp.csv']
        halves = replace(recipe, n_folds=2)
        run = self_train(halves, None, task / 'train', folder, boxes=boxes, **QUIET)
    assert run.oof is not None
    out = folder / 'submission.csv'
    submit(f'{folder}/fold_*.pt', task / 'test', out, task / 'sample_submission.csv', **QUIET)
    names, truth = read_truth(task)
    lines = out.read_text(encoding='utf-8').splitlines()[1:]
    rows = {row[0]: row[1:] for row in csv.reader(lines)}
    # Ids of the soundscapes task have no ending.
    scores = np.array([rows.get(name) or rows[name.removesuffix('.flac')] for name in names], float)
    prior = np.tile(truth.mean(axis=0), (len(truth), 1))
    print_figures(start, oof=run.oof.score, test=lwlrap(truth, scores), prior=lwlrap(truth, prior))


def main(arguments: list[str]) -> None:
    '''Train the recipes that are not trained yet, and print the table.'''
    if arguments[:1] == ['--cell']:
        return train_cell(arguments[1])
    for kind in ('tagging', 'soundscapes'):
        make_task(kind)
    names = arguments or list(RECIPES)
    path = RUNS_FOLDER / 'recipes' / 'cells.csv'
    done = run_cells('tests.benchmarks.recipes', names, path, minutes=24 * 60)
    print(f'| {" | ".join(COLUMNS)} |')
    print('|---' * len(COLUMNS) + '|')
    for name in names:
        if name in done:
            figures = done[name]
            scores = f'{figures["oof"]:.3f} | {figures["test"]:.3f} | {figures["prior"]:.3f}'
            print(f'| `{name}` | {task_of(name)} | {scores} | {figures["cpu_s"] / 120:.1f} |')


if __name__ == '__main__':
    main(sys.argv[1:])
