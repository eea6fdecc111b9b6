'''Submit real soundscapes before shorter and shorter deadlines: `python -m tests.benchmarks deadline [FILE.png]`.

Two runs of tests/benchmarks/recipes.py predict the test recordings; they are trained if they are not there.
'''

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kit.labels.metrics import lwlrap
from kit.plots.figure import Plot, new_figure
from tests.benchmarks.cells import ROOT, RUNS_FOLDER, make_task, run_cells
from tests.benchmarks.study import read_truth

RUNS = ('freq-coord', 'freq-crop')
SHARES = (0.1, 0.2, 0.3, 0.6, 1.0)
FOLDER = RUNS_FOLDER / 'deadline'
HOP_S = '0.2'  # of windows of 3 and 4 s, so that the work takes minutes


def submit_before(deadline_s: float | None) -> tuple[float, dict[str, object], float]:
    '''Submit in a new process; return its seconds, the report, and the lwlrap on the test recordings.'''
    task = make_task('soundscapes')
    shutil.rmtree(FOLDER, ignore_errors=True)
    out = FOLDER / 'out.csv'
    out.parent.mkdir(parents=True)
    words = ['submit', '--checkpoints', *(f'{RUNS_FOLDER}/recipes/{run}/fold_*.pt' for run in RUNS)]
    words += ['--audio', str(task / 'test'), '--template', str(task / 'sample_submission.csv')]
    words += ['--out', str(out), '--no-progress', '--hop-s', HOP_S]
    if deadline_s is not None:
        words += ['--deadline', f'{deadline_s}']
    start = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / 'audiotag_kit.py'), *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    names, truth = read_truth(task)
    rows = {row[0]: row[1:] for row in csv.reader(out.read_text(encoding='utf-8').splitlines()[1:])}
    scores = np.array([rows.get(name) or rows[name.removesuffix('.flac')] for name in names], float)
    assert len(rows) == len(names) and np.isfinite(scores).all()
    return seconds, json.loads(out.with_suffix('.json').read_text(encoding='utf-8')), lwlrap(truth, scores)


def main(picture: str | None = None) -> None:
    '''Print the table; draw the scores over the deadlines.'''
    for kind in ('tagging', 'soundscapes'):
        make_task(kind)
    missing = [name for name in RUNS if not (RUNS_FOLDER / 'recipes' / name / 'oof.csv').is_file()]
    run_cells('tests.benchmarks.recipes', missing, RUNS_FOLDER / 'recipes' / 'cells.csv', minutes=24 * 60)
    subprocess.run([sys.executable, str(ROOT / 'build_single_file.py')], check=True, stdout=subprocess.DEVNULL)
    full_s, report, score = submit_before(None)
    print(f'without a deadline: {full_s:.1f} s, {report["audio_s"]:.0f} s of audio, lwlrap {score:.4f}')
    print('| deadline, s | of the whole | ended after | unused | rows by all, some, no models | lwlrap |')
    print('|---|---|---|---|---|---|')
    points = []
    for share in SHARES:
        deadline_s = round(share * full_s, 1)
        seconds, report, score = submit_before(deadline_s)
        rows = ', '.join(str(report[name]) for name in ('rows_all_models', 'rows_some_models', 'rows_with_prior'))
        unused = max(0.0, 1 - seconds / deadline_s)
        print(f'| {deadline_s} | {share:.0%} | {seconds:.1f} | {unused:.1%} | {rows} | {score:.4f} |', flush=True)
        points.append((deadline_s, score))
    if picture:
        figure, axes = new_figure(6, 3.2)
        axes.plot(*zip(*points, strict=True), 'o-')
        axes.set(xlabel='deadline, seconds', ylabel='lwlrap', xlim=(0, None), title='Score by the time that is given')
        Plot(figure).save(Path(picture))
