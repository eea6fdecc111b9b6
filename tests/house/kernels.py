"""Notebooks in, what their cells gave in a fresh kernel of this interpreter out."""

import json
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

KERNEL = "under-test"


def offer_kernel(home: Path, patch: pytest.MonkeyPatch) -> None:
    """This interpreter as a kernel; Jupyter's files all lie in `home`."""
    spec = home / "kernels" / KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": words, "display_name": "under test", "language": "python"}))
    for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        patch.setenv(name, str(home))


def run_notebook(notebook: Any, folder: Path) -> list[Any]:
    """Its cells, run in `folder` by an offered kernel; failures are outputs."""
    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        notebook, timeout=120, startup_timeout=120, kernel_name=KERNEL, allow_errors=True, resources=where
    )
    client.execute()
    return list(notebook.cells)


def run_cells(folder: Path, cells: list[str], patch: pytest.MonkeyPatch) -> list[Any]:
    """The cells of a notebook in `folder`, run by a fresh kernel."""
    offer_kernel(folder / "jupyter", patch)
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return run_notebook(nbformat.v4.new_notebook(cells=cells), folder)


def printed(cell: Any, stream: str = "stdout") -> str:
    """What a cell wrote to one stream."""
    return "".join(out["text"] for out in cell.outputs if out.output_type == "stream" and out.name == stream)


def failure(cell: Any) -> str:
    """The name and value of the error that a cell ended with, empty where it went well."""
    return "".join(f"{out.ename}: {out.evalue}" for out in cell.outputs if out.output_type == "error")
