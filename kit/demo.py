'''The demo: make toy data, train, relabel, train again, submit in a new process, and write reports.'''

import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kit.audio.decode import header_duration_s, list_audio
from kit.competitions import find_data
from kit.core.errors import KitError
from kit.core.worker import self_command
from kit.labels.layouts import CompetitionData
from kit.labels.metrics import lwlrap
from kit.labels.table import label_targets, read_clip_table
from kit.report import show
from kit.train.oof import load_run
from kit.train.recipes import find_recipe
from kit.train.self_training import self_train

# Small enough for a minute on two cores.
DEMO_SETTINGS = [
    'frontend.sample_rate=22050',
    'frontend.hop_length=512',
    'frontend.n_fft=1024',
    'frontend.n_mels=64',
    'network.width=12',
    'crop_s=2.5',
    'epochs=12',
    'no_augment_epochs=3',
    'n_folds=2',
    'validate_every=12',
    'self_training.iterations=1',
    'self_training.top_k=[0.5]',
]


def run_demo(out: str = 'demo', clips: int = 120, epochs: int | None = None) -> str:
    '''Do everything on toy data: train two small folds, relabel, train again, submit, and report.

    Options:
        out: the folder to work in
        clips: number of training clips; as many more have labels that are partly wrong
        epochs: epochs of each training
    '''
    start = time.perf_counter()
    folder = Path(out)
    data = find_data('clips', folder / 'data', clips)
    more = [] if epochs is None else [f'epochs={epochs}']
    recipe = find_recipe('max-pyramid-mel', small=True, overrides=DEMO_SETTINGS + more)
    print(self_train(recipe, data.table, data.audio, folder / 'run'), flush=True)
    teacher = load_run(folder / 'run' / 'rounds' / '0')
    student = load_run(folder / 'run')

    submit_s = submit_in_new_process(folder, data)
    audio_s = sum(header_duration_s(path) or 0.0 for path in list_audio(data.test))
    score, prior_score = score_csv(folder / 'submission.csv', data.test.parent / 'test_truth.csv')
    pages = report_demo(folder)
    return (
        f'{teacher.oof.metric} out of fold: {teacher.oof.score:.4f} with {clips} clean clips, '
        f'{student.oof.score:.4f} with the noisy clips that agree\n'
        f'lwlrap on the test clips: {score:.4f} (class frequencies alone: {prior_score:.4f})\n'
        f'submitted {audio_s:.0f} s of audio in {submit_s:.1f} s, start-up included: '
        f'{audio_s / submit_s:.0f} times as fast as real time\n'
        f'{pages}; the demo took {time.perf_counter() - start:.0f} s'
    )


def report_demo(folder: Path) -> str:
    '''Write a page about the run and one about the submission; return a sentence that names them.'''
    pages = [folder / 'report.html', folder / 'submission.html']
    show(folder / 'run', pages[0])
    show(folder / 'submission.csv', pages[1])
    missing = importlib.util.find_spec('matplotlib') is None
    note = ', without plots, which need matplotlib: pip install matplotlib' if missing else ''
    return f'see {pages[0]}, {pages[1]}{note}'


def submit_in_new_process(folder: Path, data: CompetitionData) -> float:
    '''Submit with this kit's command line in a new process, as on Kaggle; return the seconds that this took.'''
    command, environment = self_command()
    arguments = [
        f'--checkpoints={folder.resolve() / "run"}/fold_*.pt',
        f'--audio={data.test.resolve()}',
        f'--template={data.template.resolve()}',
        f'--out={(folder / "submission.csv").resolve()}',
        '--deadline=5m',
        '--no-progress',
    ]
    start = time.perf_counter()
    # In an empty folder, so that nothing is imported from the working folder.
    with tempfile.TemporaryDirectory(prefix='audiotag_kit_') as work_folder:
        words = [sys.executable, *command, 'submit', *arguments]
        code = subprocess.run(words, cwd=work_folder, env=os.environ | environment, check=False).returncode
    if code:
        raise KitError(f'the submission ended with exit code {code}; its error is above.')
    return time.perf_counter() - start


def score_csv(path: Path, truth_path: Path) -> tuple[float, float]:
    '''Return the lwlrap of a submission, and that of predicting the class frequencies for every clip.'''
    table = read_clip_table(truth_path)
    header, *rows = csv.reader(path.read_text(encoding='utf-8').splitlines())
    scores = {name: [float(cell) for cell in cells] for name, *cells in rows}
    labels = table['true_labels'] if 'true_labels' in table else table['labels']
    truth = label_targets(list(labels), header[1:])
    frequencies = np.tile(truth.mean(axis=0), (len(truth), 1))
    return lwlrap(truth, [scores[name] for name in table['fname']]), lwlrap(truth, frequencies)
