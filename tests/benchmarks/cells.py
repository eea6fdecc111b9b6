'''Run the cells of a table as processes, one thread each, one per core; finished cells are kept in a CSV file.'''

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.core.files import write_rows
from kit.core.runtime import cpu_count

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / 'shared'
RUNS_FOLDER = ROOT / 'runs'
ESC10 = SHARED / 'data' / 'esc10'
COLUMNS = ('cell', 'figure', 'value')
Figures = dict[str, float]


def make_task(kind: str) -> Path:
    '''Make a task of real clips from ESC-10, once; `kind` is "tagging", "soundscapes" or "birdclef".'''
    folder = RUNS_FOLDER / kind
    if not [*folder.glob('**/sample_submission.csv')]:
        script = SHARED / 'tools' / 'real_tasks.py'
        subprocess.run([sys.executable, str(script), kind, str(folder)], check=True)
    return folder


def read_cells(path: Path) -> dict[str, Figures]:
    '''Read the figures of every finished cell.'''
    cells: dict[str, Figures] = {}
    if path.is_file():
        with open(path, encoding='utf-8', newline='') as handle:
            for row in csv.DictReader(handle):
                cells.setdefault(row['cell'], {})[row['figure']] = float(row['value'])
    return cells


def write_cells(path: Path, cells: Mapping[str, Figures]) -> None:
    '''Write the figures of all finished cells.'''
    rows = []
    for cell, figures in cells.items():
        rows += [(cell, figure, f'{value:.6g}') for figure, value in figures.items()]
    write_rows(path, [COLUMNS, *rows])


def start_cell(module: str, cell: str) -> 'subprocess.Popen[str]':
    '''Start a cell: `python -m MODULE --cell NAME` prints its figures as JSON on its last line.'''
    return subprocess.Popen(
        [sys.executable, '-m', module, '--cell', cell],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )


def run_cells(module: str, cells: Sequence[str], path: Path, minutes: float) -> dict[str, Figures]:
    '''Run the cells that are not finished, and start no more once the minutes are over.

    Returns the figures of all finished cells. They are also in `path`, so that the next call continues.
    '''
    done = read_cells(path)
    stop_at = time.monotonic() + 60 * minutes
    waiting = [cell for cell in cells if cell not in done]
    running: dict[str, tuple[subprocess.Popen[str], float]] = {}
    while waiting or running:
        while waiting and len(running) < cpu_count() and time.monotonic() < stop_at:
            cell = waiting.pop(0)
            running[cell] = (start_cell(module, cell), time.monotonic())
        if not running:
            break
        for cell, (process, start) in list(running.items()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                del running[cell]
                output = process.stdout.read() if process.stdout else ''
                if process.returncode:
                    print(f'{cell} failed', flush=True)
                    continue
                figures: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
                done[cell] = {**figures, 'wall_s': time.monotonic() - start}
                write_cells(path, done)
                print(f'{cell}: {figures}', flush=True)
    for cell in waiting:
        print(f'{cell}: not reached', flush=True)
    return done


def print_figures(start_cpu_s: float, **figures: float) -> None:
    '''Print the last line of a cell: its figures, and the processor seconds since `start_cpu_s`.'''
    cpu_s = round(time.process_time() - start_cpu_s, 1)
    print(json.dumps({**figures, 'cpu_s': cpu_s}), flush=True)
