"""Cells of a table in, their figures in a CSV out: one process with one thread each, one a core, resumable."""

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
SHARED = ROOT.parent / "shared"
ROOM = ROOT / "runs"
ESC10 = SHARED / "data" / "esc10"
COLUMNS = ("cell", "figure", "value")


def make_task(kind: str) -> Path:
    """A real task cut from ESC-10, made once: `tagging` or `soundscapes`."""
    folder = ROOM / kind
    if not (folder / "sample_submission.csv").is_file():
        maker = SHARED / "tools" / "real_tasks.py"
        subprocess.run([sys.executable, str(maker), kind, str(folder)], check=True)
    return folder


def read_cells(path: Path) -> dict[str, dict[str, float]]:
    """Every finished cell's figures."""
    found: dict[str, dict[str, float]] = {}
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                found.setdefault(row["cell"], {})[row["figure"]] = float(row["value"])
    return found


def write_cells(path: Path, cells: Mapping[str, Mapping[str, float]]) -> None:
    """All figures, whole."""
    rows = [
        (cell, figure, f"{value:.6g}") for cell, figures in cells.items() for figure, value in figures.items()
    ]
    write_rows(path, [COLUMNS, *rows])


def start_cell(module: str, cell: str) -> "subprocess.Popen[str]":
    """One cell at work: `python -m module --cell NAME` prints its figures as JSON on its last line."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "--cell", cell], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run_cells(module: str, cells: Sequence[str], path: Path, minutes: float) -> dict[str, dict[str, float]]:
    """The figures of all cells that are done, or can be within so many minutes: `path` keeps them for the next call."""
    done, until = read_cells(path), time.monotonic() + 60 * minutes
    waiting = [cell for cell in cells if cell not in done]
    working: dict[str, tuple[subprocess.Popen[str], float]] = {}
    while waiting or working:
        while waiting and len(working) < cpu_count() and time.monotonic() < until:
            cell = waiting.pop(0)
            working[cell] = start_cell(module, cell), time.monotonic()
        if not working:
            break
        for cell, (process, began) in list(working.items()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                del working[cell]
                said = process.stdout.read() if process.stdout else ""
                if process.returncode:
                    print(f"{cell} failed", flush=True)
                    continue
                figures: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
                done[cell] = {**figures, "wall_s": time.monotonic() - began}
                write_cells(path, done)
                print(f"{cell}: {figures}", flush=True)
    for cell in waiting:
        print(f"{cell}: not reached", flush=True)
    return done


def say_figures(began_cpu_s: float, **figures: float) -> None:
    """The last line of a cell: its figures, with the seconds of processor that it took."""
    print(json.dumps({**figures, "cpu_s": round(time.process_time() - began_cpu_s, 1)}), flush=True)
