"""Every notebook: how it lies in git, and what it does beside nothing but the bundle, in seconds, on toy data."""

import ast
import csv
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest

from build_single_file import build
from tests.house.kernels import failure, offer_kernel, printed, run_notebook
from tests.house.minikit import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
COMPETITIONS = ("freesound-audio-tagging-2019", "rfcx-species-audio-detection")
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
Runs = dict[Path, "Future[list[Any]]"]


def read(path: Path) -> Any:
    """A notebook."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_of(notebook: Any) -> list[str]:
    """The text of its code cells, without magics."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub("^%.*$", "", text, flags=re.MULTILINE) for text in texts]


def settings_in(code: str) -> set[str]:
    """The names in capitals that a cell gives a value."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, ast.Store) and node.id.isupper()}


@EVERY_NOTEBOOK
def test_a_notebook_lies_in_git_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.metadata == {} and re.fullmatch("[a-z-]+", cell.id), cell.id
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None), cell.id


@EVERY_NOTEBOOK
def test_a_notebook_is_short_starts_with_the_bundle_and_keeps_its_settings_in_one_cell(path: Path) -> None:
    notebook = read(path)
    assert 8 <= len(notebook.cells) <= 14 and notebook.cells[0].cell_type == "markdown"
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert re.search("^%run", code[0], re.MULTILINE) and not any("%run" in text for text in code[1:])
    with_settings = [text for text in code_of(notebook) if settings_in(text)]
    assert len(with_settings) == 1 and {"QUICK", "OUT"} <= settings_in(with_settings[0])
    assert "minutes on two" in notebook.cells[0].source and "not yet measured" in notebook.cells[0].source


@EVERY_NOTEBOOK
def test_a_notebook_can_be_pushed_to_kaggle_offline(path: Path) -> None:
    facts = json.loads((path.parent / "kernel-metadata.json").read_text(encoding="utf-8"))
    owner, _, slug = facts["id"].partition("/")
    assert (owner, slug) == ("OWNER", f"audiotag-kit-{path.stem}") and path.parent.name == path.stem
    assert re.sub("[^a-z0-9]+", "-", facts["title"].lower()) == slug  # else Kaggle makes another kernel
    assert (facts["code_file"], facts["language"], facts["kernel_type"]) == (path.name, "python", "notebook")
    assert facts["enable_internet"] is False and facts["is_private"] is True
    assert facts["enable_gpu"] is path.stem.startswith("train-")
    assert facts["dataset_sources"] == ["OWNER/audiotag-kit"] and facts["kernel_sources"] == []
    assert len(facts["competition_sources"]) == 1 and facts["competition_sources"][0] in COMPETITIONS


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The notebooks that tests ask for, each in a folder with nothing but the bundle; two kernels at a time."""
    home, bundle = tmp_path_factory.mktemp("notebooks"), build(ROOT)
    ours = [item for item in request.session.items if item.path == request.path]
    asked = [item for item in ours if "runs" in getattr(item, "fixturenames", ())]
    paths = dict.fromkeys(item.callspec.params["path"] for item in asked)  # type: ignore[attr-defined]

    def run(path: Path) -> list[Any]:
        folder = home / path.stem
        folder.mkdir()
        (folder / "audiotag_kit.py").write_text(bundle, encoding="utf-8")
        return [folder, *run_notebook(read(path), folder)]

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        offer_kernel(home / "jupyter", patch)
        patch.setenv("AUDIOTAG_KIT_QUICK", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield {path: pool.submit(run, path) for path in paths}


@EVERY_NOTEBOOK
def test_a_notebook_runs_beside_nothing_but_the_bundle(path: Path, runs: Runs) -> None:
    folder, *cells = runs[path].result()
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [f"{cell.id}: {failure(cell)}" for cell in code if failure(cell)] == []
    for cell in code:
        shown = [out for out in cell.outputs if "image/png" in out.get("data", {})]
        assert len(shown) == len(re.findall(r"\bdraw_\w+\(", cell.source)), cell.id
    saved = re.findall("^saved (.+)$", printed(code[-1]), re.MULTILINE)
    assert saved and [name for name in saved if not (folder / name).exists()] == []
    assert "submission" in printed(code[-1]) or path.stem == "look-at-data"
    assert ("submission.csv" in saved) is (path.stem != "look-at-data")
    if "submission.csv" in saved:
        check_submission(folder)


def check_submission(folder: Path) -> None:
    """The CSV has the template's rows and columns, and a probability in each."""
    (template,) = folder.glob("data/toy_*/sample_submission.csv")
    wanted, came = (
        list(csv.reader(path.open(encoding="utf-8"))) for path in (template, folder / "submission.csv")
    )
    assert came[0] == wanted[0] and [row[0] for row in came] == [row[0] for row in wanted]
    assert all(math.isfinite(float(cell)) and 0 <= float(cell) <= 1 for row in came[1:] for cell in row[1:])
