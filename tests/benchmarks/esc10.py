'''Train three systems on ESC-10's own five folds from scratch, and average them: `python -m tests.benchmarks.esc10`.'''

import sys
import time

import numpy as np
import torch

from kit.infer.blend import blend_scores
from kit.labels.table import label_targets, read_clip_table
from kit.train.recipes import find_recipe
from kit.train.run import train_run
from tests.benchmarks.cells import ESC10, RUNS_FOLDER, print_figures, run_cells

COMMON = [
    'optim.average=ema',
    'optim.ema_decay=0.99',
    'spec_augment.mask_p=0.6',
    'spec_augment.filter_p=0.7',
    'spec_augment.crop_p=0.6',
    'spec_augment.crop_scale=[0.6,1.0]',
    'spec_augment.crop_aspect=[0.75,1.33]',
]
# The changes of each recipe's small form.
ESC10_SETTINGS: dict[str, list[str]] = {
    'max-pyramid-mel': [
        'frontend.n_mels=64',
        'frontend.n_fft=1024',
        'frontend.hop_length=512',
        'network.head.pool=mean-max',
        'epochs=80',
        'no_augment_epochs=8',
        'validate_every=80',
        'mixup.p=0.6',
        'spec_augment.time_share=0.12',
        'spec_augment.freq_share=0.12',
    ],
    'window-snr': [
        'frontend.n_fft=1024',
        'frontend.normalize=none',
        'frontend.top_db=null',
        'network.width=16',
        'network.head.dropout=0.2',
        'inference.window_s=3.0',
        'crop_s=3.0',
        'epochs=80',
        'validate_every=80',
        'mixup.domain=energy',
        'mixup.labels=union',
        'mixup.convex=false',
        'mixup.beta=0',
        'mixup.p=0.6',
    ],
    'skip-attention': [
        'frontend.n_fft=1280',
        'network.width=10',
        'epochs=60',
        'validate_every=60',
        'keep=last',
        'optim.schedule=cosine',
        'optim.lr_start=3e-3',
        'optim.lr_peak=3e-3',
    ],
}
FOLDS = (1, 2, 3, 4, 5)


def run_folder(name: str, fold: int) -> str:
    '''The folder of the run that trains one fold of a system.'''
    return str(RUNS_FOLDER / 'esc10' / f'{name}_{fold}')


def train_cell(cell: str) -> None:
    '''Train one fold of one system, and print its accuracy.'''
    torch.set_num_threads(1)
    start = time.process_time()
    name, _, fold = cell.partition('/')
    run = train_run(
        find_recipe(name, small=True, overrides=[*ESC10_SETTINGS[name], *COMMON]),
        ESC10 / 'labels.csv',
        ESC10 / 'audio',
        run_folder(name, int(fold)),
        only_folds=[int(fold)],
        group_column='source_id',
        threads=1,
        progress=False,
    )
    assert run.oof is not None
    correct = run.oof.probabilities.argmax(1) == run.oof.truth.argmax(1)
    print_figures(start, accuracy=float(correct.mean()), lwlrap=run.oof.score)


def read_predictions(name: str) -> tuple[list[str], np.ndarray]:
    '''Read a system's out-of-fold predictions of all clips, sorted by name. Shape: -> n names, (n, K)'''
    import pandas

    frames = [pandas.read_csv(f'{run_folder(name, fold)}/oof.csv') for fold in FOLDS]
    table = pandas.concat(frames).sort_values('fname')
    return list(table['fname']), table.iloc[:, 2:].to_numpy()


def describe(probs: np.ndarray, truth: np.ndarray) -> str:
    '''Cells of a row: accuracy on all folds and on those that chose no setting, log loss, calibration error.

    The calibration error is the mean gap between confidence and accuracy in ten bins of confidence, by their clips.
    Shape:  probabilities (n, K) and classes (n,) of the clips of five folds of equal size, sorted by name
    '''
    share = probs / probs.sum(axis=1, keepdims=True)
    is_right = share.argmax(axis=1) == truth
    confidence = share.max(axis=1)
    bins = np.minimum((10 * confidence).astype(int), 9)
    gaps = np.bincount(bins, is_right - confidence, minlength=10)
    loss = -np.log(share[np.arange(len(truth)), truth].clip(1e-9)).mean()
    fold = np.sort(np.tile(FOLDS, len(truth) // 5))  # a clip's name begins with its fold
    others = is_right[np.isin(fold, (2, 4, 5))].mean()
    return f'{is_right.mean():.4f} | {others:.4f} | {loss:.3f} | {np.abs(gaps).sum() / len(truth):.3f}'


def main(arguments: list[str]) -> None:
    '''Train what is not trained yet, and print the table.'''
    if arguments[:1] == ['--cell']:
        return train_cell(arguments[1])
    names = arguments or list(ESC10_SETTINGS)
    cells = [f'{name}/{fold}' for name in names for fold in FOLDS]
    path = RUNS_FOLDER / 'esc10' / 'cells.csv'
    done = run_cells('tests.benchmarks.esc10', cells, path, minutes=24 * 60)
    table = read_clip_table(ESC10 / 'labels.csv').sort_values('fname')
    classes = sorted(set(table['labels']))
    truth = label_targets(list(table['labels']), classes).argmax(1)
    scores = []
    print('| system | accuracy | on folds 2, 4, 5 | log loss | calibration error | folds | minutes of two cores |')
    print('|---|---|---|---|---|---|---|')
    for name in names:
        fnames, probs = read_predictions(name)
        assert fnames == list(table['fname'])
        scores.append(probs)
        figures = [done[f'{name}/{fold}'] for fold in FOLDS]
        folds = ', '.join(f'{of_fold["accuracy"]:.3f}' for of_fold in figures)
        minutes = sum(of_fold['cpu_s'] for of_fold in figures) / 120
        print(f'| {name} | {describe(probs, truth)} | {folds} | {minutes:.1f} |')
    for kind in ('mean', 'geometric'):
        blended = blend_scores(scores, kind=kind)
        print(f'| all, {kind} | {describe(blended, truth)} | | |')


if __name__ == '__main__':
    main(sys.argv[1:])
