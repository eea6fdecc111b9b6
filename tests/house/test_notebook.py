"""The bundle where it is used: a real Jupyter kernel, run twice, pasted, imported; and as a script."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build_single_file import build
from tests.house.kernels import failure, printed, run_cells
from tests.house.minikit import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the bundle."""
    path = tmp_path_factory.mktemp("notebook")
    (path / "audiotag_kit.py").write_text(build(ROOT), encoding="utf-8")
    return path


def script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The bundle as a script."""
    command = [sys.executable, "audiotag_kit.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


# A cell that meets a KitError, and says by `where` which line of kit/ raised it.
TRACE = """
import sys, traceback
try:
    choose("colour", "red", {"blue": 1})
except KitError as error:
    print(where(traceback.extract_tb(error.__traceback__)[-1].lineno))
"""

RUN = {
    "run": "%run audiotag_kit.py",
    "again": "%run audiotag_kit.py",
    "trace": TRACE,
    "recipes": "%run audiotag_kit.py recipes",
    "nonsense": "%run audiotag_kit.py nonsense",
    "alive": "print(callable(submit), callable(train_run), __name__)",
}


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Any]:
    """The cells of a notebook that runs the bundle by %run."""
    with pytest.MonkeyPatch.context() as patch:
        return dict(zip(RUN, run_cells(folder, list(RUN.values()), patch), strict=True))


@pytest.fixture(scope="module")
def pasted(folder: Path) -> dict[str, Any]:
    """The cells of a notebook into which the bundle was pasted, and which then imports it too."""
    text = (folder / "audiotag_kit.py").read_text(encoding="utf-8")
    cells = {
        "paste": text,
        "trace": TRACE,
        "names": "print(callable(submit), callable(train_run), __name__)",
        "import": "import audiotag_kit",
        "same": "print(audiotag_kit.VERSION == VERSION, audiotag_kit.KitError is KitError)",
    }
    with pytest.MonkeyPatch.context() as patch:
        return dict(zip(cells, run_cells(folder, list(cells.values()), patch), strict=True))


@pytest.mark.parametrize("cell", ["run", "again"])
def test_run_without_words_prints_one_line(ran: dict[str, Any], cell: str) -> None:
    assert failure(ran[cell]) == "" and printed(ran[cell], "stderr") == ""
    assert len(printed(ran[cell]).splitlines()) == 1
    assert printed(ran[cell]).strip()


def test_run_with_a_verb_does_it(ran: dict[str, Any]) -> None:
    assert failure(ran["recipes"]) == ""
    assert len(printed(ran["recipes"]).splitlines()) > 1


def test_a_wrong_verb_fails_its_cell_with_a_sentence_and_the_kernel_lives(ran: dict[str, Any]) -> None:
    said = printed(ran["nonsense"]) + printed(ran["nonsense"], "stderr") + failure(ran["nonsense"])
    assert "nonsense" in said and "Traceback" not in printed(ran["nonsense"], "stderr")
    assert failure(ran["nonsense"]).startswith("SystemExit")
    assert printed(ran["alive"]) == "True True __main__\n"


def test_a_traceback_leads_back_to_kit(ran: dict[str, Any], pasted: dict[str, Any]) -> None:
    text = (ROOT / "kit/core/errors.py").read_text(encoding="utf-8")
    line = text[: text.index('raise KitError(f"unknown')].count("\n") + 1
    assert printed(ran["trace"]) == printed(pasted["trace"]) == f"kit/core/errors.py:{line}\n"


def test_the_bundle_can_be_pasted_into_a_cell(pasted: dict[str, Any]) -> None:
    assert failure(pasted["paste"]) == "" and printed(pasted["paste"], "stderr") == ""
    assert len(printed(pasted["paste"]).splitlines()) <= 1
    assert printed(pasted["names"]) == "True True __main__\n"


def test_the_bundle_can_be_imported_beside_a_pasted_one(pasted: dict[str, Any]) -> None:
    assert failure(pasted["import"]) == "" and printed(pasted["import"]) == ""
    assert printed(pasted["same"]) == "True False\n"


def test_a_script_does_its_verb_and_exits_with_0(folder: Path) -> None:
    run = script(folder, "recipes")
    assert run.returncode == 0 and run.stdout and run.stderr == ""


def test_a_script_with_a_wrong_verb_exits_with_2_and_one_line(folder: Path) -> None:
    run = script(folder, "nonsense")
    assert run.returncode == 2 and run.stdout == ""
    assert len(run.stderr.splitlines()) == 1 and "nonsense" in run.stderr


def test_bundle_and_package_are_the_same_door(folder: Path) -> None:
    command = [sys.executable, "-m", "kit", "recipes"]
    package = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert package.returncode == 0 and package.stdout == script(folder, "recipes").stdout
