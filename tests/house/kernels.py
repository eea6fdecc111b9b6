'''Run notebooks and cells in fresh Jupyter kernels of this interpreter.'''

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

KERNEL = 'under-test'


def offer_kernel(home: Path, patch: pytest.MonkeyPatch) -> None:
    '''Install this interpreter as a kernel, and keep all of Jupyter's files in `home`.'''
    spec = home / 'kernels' / KERNEL / 'kernel.json'
    spec.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    spec.write_text(json.dumps({'argv': command, 'display_name': 'under test', 'language': 'python'}))
    for name in ('JUPYTER_PATH', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'IPYTHONDIR'):
        patch.setenv(name, str(home))


def run_notebook(notebook: Any, folder: Path, env: Mapping[str, str] | None = None) -> list[Any]:
    '''Run a notebook in a folder, and return its cells with their outputs. An error is an output, too.

    `env` is added to the environment.
    '''
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        startup_timeout=120,
        kernel_name=KERNEL,
        allow_errors=True,
        resources={'metadata': {'path': str(folder)}},
    )
    client.execute(env={**os.environ, **(env or {})})
    return list(notebook.cells)


def run_cells(folder: Path, cells: list[str], patch: pytest.MonkeyPatch) -> list[Any]:
    '''Run code cells in a folder in a fresh kernel, and return them with their outputs.'''
    offer_kernel(folder / 'jupyter', patch)
    code_cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return run_notebook(nbformat.v4.new_notebook(cells=code_cells), folder)


def printed(cell: Any, stream: str = 'stdout') -> str:
    '''Return what a cell wrote to one stream.'''
    outputs = [output for output in cell.outputs if output.output_type == 'stream']
    return ''.join(output['text'] for output in outputs if output.name == stream)


def failure(cell: Any) -> str:
    '''Return the error that ended a cell, or an empty text.'''
    errors = [output for output in cell.outputs if output.output_type == 'error']
    return ''.join(f'{output.ename}: {output.evalue}' for output in errors)
