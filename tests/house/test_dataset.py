"""The folder for Kaggle: a bundle and checkpoints in, what its client accepts out, or one line that says why not."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from build_single_file import METADATA, Refused, check_dataset_name, flat_names, look_into
from kit.audio.frontend import FrontendConfig
from kit.models.checkpoint import own_tagger, save_tagger
from tests.house.minikit import write_mini

NAME = "some-one/audiotag-kit"
# The licences that Kaggle's client documents for datasets, those that could be ours.
LICENCES = {"CC0-1.0", "CC-BY-4.0", "apache-2.0", "copyright-authors", "other", "unknown"}


def run_builder(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The builder of the small kit as a script, in its folder, by a Python without any package."""
    command = [sys.executable, "-S", "-E", "build_single_file.py", "--kaggle-dataset", NAME, *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def files_below(root: Path) -> dict[str, bytes]:
    """Every file below a folder with what it holds, Python's caches apart."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The small kit beside two runs: a checkpoint each of one name, and the second's resume state."""
    write_mini(tmp_path)
    for seed, run in enumerate(("run", "other")):
        torch.manual_seed(seed)
        tagger = own_tagger(nn.Linear(2, 3), FrontendConfig(), ["bark", "meow", "rain"], name="mine")
        object.__setattr__(tagger.card, "fold", 0)
        object.__setattr__(tagger.card, "oof_score", 0.75)
        save_tagger(tmp_path / run / "fold_0.pt", tagger)
    torch.save({"recipe": "{}", "epoch": 3, "network": {}}, tmp_path / "other" / "resume.pt")
    return tmp_path


def test_the_folder_holds_the_bundle_the_checkpoints_and_what_kaggle_is_told(root: Path) -> None:
    ran = run_builder(root, "--with-checkpoints", "run/*.pt")
    assert (ran.returncode, ran.stderr) == (0, "")
    folder = files_below(root / "kaggle_dataset")
    assert sorted(folder) == ["audiotag_kit.py", METADATA, "fold_0.pt"]
    assert folder["audiotag_kit.py"] == (root / "audiotag_kit.py").read_bytes()
    assert folder["fold_0.pt"] == (root / "run" / "fold_0.pt").read_bytes()
    for name, content in folder.items():
        assert any(
            name in line and f"{len(content) / 1e6:.3f} MB" in line for line in ran.stdout.splitlines()
        )
    assert "own:mine, 3 classes, fold 0, oof lwlrap 0.7500" in ran.stdout
    assert "kaggle datasets create -p " in ran.stdout and "doctor" in ran.stdout


def test_the_metadata_is_as_kaggle_documents_it(root: Path) -> None:
    run_builder(root, "--with-checkpoints", "run/*.pt", "other/fold_*.pt")
    told = json.loads((root / "kaggle_dataset" / METADATA).read_text())
    assert told["id"] == NAME and 6 <= len(told["title"]) <= 50 and 20 <= len(told["subtitle"]) <= 80
    assert len(told["licenses"]) == 1 and told["licenses"][0]["name"] in LICENCES
    assert told["licenses"][0]["name"] != "other" or "MIT licence" in told["description"]
    listed = [resource["path"] for resource in told["resources"]]
    there = {path.name for path in (root / "kaggle_dataset").iterdir()} - {METADATA}
    assert sorted(listed) == sorted(there)


def test_files_of_one_name_are_told_apart_by_their_runs(root: Path) -> None:
    patterns = [
        "--with-checkpoints",
        "run/*.pt",
        "--with-checkpoints",
        "other/fold_*.pt",
        "other/../run/fold_0.pt",
    ]
    assert run_builder(root, *patterns).returncode == 0
    folder = files_below(root / "kaggle_dataset")
    for run in ("run", "other"):
        assert folder[f"{run}_fold_0.pt"] == (root / run / "fold_0.pt").read_bytes()
    assert sorted(folder) == ["audiotag_kit.py", METADATA, "other_fold_0.pt", "run_fold_0.pt"]
    assert flat_names([Path("a/fold_0.pt"), Path("b/fold_1.pt")]).keys() == {"fold_0.pt", "fold_1.pt"}


def test_a_dry_run_says_the_same_and_writes_nothing(root: Path) -> None:
    before = files_below(root)
    dry = run_builder(root, "--with-checkpoints", "run/*.pt", "--dry-run")
    assert dry.returncode == 0 and files_below(root) == before
    wet = run_builder(root, "--with-checkpoints", "run/*.pt")
    assert dry.stdout.replace("would be ", "") == wet.stdout


def test_an_earlier_calls_files_go_and_a_strangers_stay(root: Path) -> None:
    run_builder(root, "--with-checkpoints", "run/*.pt", "other/fold_*.pt")
    folder = root / "kaggle_dataset"
    (folder / "run_fold_0.pt.part").write_bytes(b"left by a kill")
    (folder / "other_fold_0.pt").unlink()
    again = run_builder(root, "--with-checkpoints", "run/*.pt")
    assert again.returncode == 0 and "run_fold_0.pt   " in again.stdout
    assert sorted(files_below(folder)) == ["audiotag_kit.py", METADATA, "fold_0.pt"]
    (folder / "notes.txt").write_text("mine")
    before = files_below(root)
    refused = run_builder(root, "--with-checkpoints", "other/fold_*.pt")
    assert refused.returncode == 1 and "notes.txt" in refused.stderr and files_below(root) == before


def damaged(root: Path) -> None:
    """One bit of a tensor is another."""
    path = root / "run" / "fold_0.pt"
    with zipfile.ZipFile(path) as archive:
        held = archive.read("archive/data/0" if "archive/data/0" in archive.namelist() else "fold_0/data/0")
    content = path.read_bytes()
    path.write_bytes(content.replace(held, bytes([held[0] ^ 1]) + held[1:]))


REFUSALS = {
    "no file matches": (["run/none*.pt"], None, "no file matches 'run/none*.pt'"),
    "a text": (["kit/cli.py"], None, "kit/cli.py is no checkpoint"),
    "a resume state": (["other/*.pt"], None, "other/resume.pt is no checkpoint of this kit"),
    "code": (
        ["run/*.pt"],
        lambda root: torch.save({"format": 2, "card": "{}", "tensors": print}, root / "run" / "fold_0.pt"),
        "run/fold_0.pt is no checkpoint: it names",
    ),
    "a damaged card": (
        ["run/*.pt"],
        lambda root: torch.save({"format": 2, "card": "{}", "tensors": {}}, root / "run" / "fold_0.pt"),
        "run/fold_0.pt has a damaged card",
    ),
    "a damaged file": (["run/*.pt"], damaged, "run/fold_0.pt is damaged in "),
    "half a file": (
        ["run/*.pt"],
        lambda root: (root / "run" / "fold_0.pt").write_bytes(
            (root / "run" / "fold_0.pt").read_bytes()[:2000]
        ),
        "run/fold_0.pt is no checkpoint",
    ),
    "two folders of one name": (
        ["run/*.pt", "more/run/*.pt"],
        lambda root: shutil.copytree(root / "run", root / "more" / "run"),
        "would both be called run_fold_0.pt",
    ),
    "a checkpoint from the folder itself": (
        ["kaggle_dataset/*.pt"],
        lambda root: run_builder(root, "--with-checkpoints", "run/*.pt"),
        "lies in",
    ),
    "a file where the folder should be": (
        ["run/*.pt"],
        lambda root: (root / "kaggle_dataset").write_text("mine"),
        "kaggle_dataset",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_uploaded_is_one_line_and_writes_nothing(case: str, root: Path) -> None:
    patterns, change, words = REFUSALS[case]
    if change:
        change(root)
    before = files_below(root)
    ran = run_builder(root, "--with-checkpoints", *patterns)
    assert ran.returncode == 1 and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert words in ran.stderr and "Traceback" not in ran.stderr
    assert files_below(root) == before


def test_a_checkpoint_of_the_kit_passes_and_tells_what_it_is(root: Path) -> None:
    assert look_into(root / "run" / "fold_0.pt") == "own:mine, 3 classes, fold 0, oof lwlrap 0.7500"


@pytest.mark.parametrize(
    "name",
    ["", "noslug", "/audiotag-kit", "a/b/c", "me/Audio-Kit", "me/audio--kit", "me/short", "me/" + "x" * 51],
)
def test_a_name_that_kaggle_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"slug|OWNER"):
        check_dataset_name(name)


def test_a_wrong_name_or_checkpoints_without_one_write_nothing(tmp_path: Path) -> None:
    write_mini(tmp_path)
    before = files_below(tmp_path)
    for words in (["--kaggle-dataset", "me/short"], ["--kaggle-dataset", ""], ["--with-checkpoints", "x"]):
        command = [sys.executable, "build_single_file.py", *words]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 1 and len(ran.stderr.splitlines()) == 1
    assert files_below(tmp_path) == before
