"""Nothing in, the whole job done on toy data out."""

import csv
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kit.audio.decode import header_duration_s, list_audio
from kit.competitions import CompetitionData, find_data
from kit.core.errors import KitError
from kit.core.worker import source_file, source_root
from kit.labels.metrics import lwlrap
from kit.labels.table import label_targets, read_clip_table
from kit.report import show
from kit.train.oof import load_run
from kit.train.recipes import find_recipe
from kit.train.self_training import self_train

DEMO_SETTINGS = (
    "frontend.sample_rate=22050 frontend.hop_length=512 frontend.n_fft=1024 frontend.n_mels=64 network.width=12 "
    "crop_s=2.5 epochs=12 no_augment_epochs=3 n_folds=2 validate_every=12 self_training.iterations=1 self_training.top_k=[0.5]"
)


def run_demo(out: str = "demo", clips: int = 120, epochs: int | None = None) -> str:
    """Make toy data, train two small folds, relabel, train again, submit from the single file, and report.

    Options:
        out: the folder to work in
        clips: training clips, beside as many whose labels are partly wrong
        epochs: epochs per training
    """
    began, folder = time.perf_counter(), Path(out)
    data = find_data("clips", folder / "data", clips)
    settings = [*DEMO_SETTINGS.split(), *([] if epochs is None else [f"epochs={epochs}"])]
    recipe = find_recipe("max-pyramid-mel", small=True, overrides=settings)
    print(self_train(recipe, data.table, data.audio, folder / "run"), flush=True)
    rounds = [load_run(path) for path in (folder / "run" / "rounds" / "0", folder / "run")]
    before, after = (lwlrap(run.truth, run.scores) for run in rounds)
    seconds = submit_from_single_file(folder, data)
    audio_s = sum(header_duration_s(path) or 0.0 for path in list_audio(data.test))
    score, prior = score_csv(folder / "submission.csv", data.test.parent / "test_truth.csv")
    return (
        f"lwlrap out of fold {before:.4f} by {clips} clean clips, {after:.4f} with noisy ones that agree; "
        f"test {score:.4f} (class frequencies alone: {prior:.4f})\n"
        f"submitted {audio_s:.0f} s of audio in {seconds:.1f} s with start-up: {audio_s / seconds:.0f} times as fast\n"
        f"{report_demo(folder)}; the demo took {time.perf_counter() - began:.0f} s"
    )


def report_demo(folder: Path) -> str:
    """Write a page on the run and one on the submission; the paths, and a word where pictures are missing."""
    pages = {folder / "run": folder / "report.html", folder / "submission.csv": folder / "submission.html"}
    for path, page in pages.items():
        show(path, page)
    lacking = importlib.util.find_spec("matplotlib") is None
    remark = " without pictures, which want matplotlib: pip install matplotlib" * lacking
    return f"see {', '.join(map(str, pages.values()))}{remark}"


def submit_from_single_file(folder: Path, data: CompetitionData) -> float:
    """Seconds of submitting in a process of its own, from the single file."""
    with tempfile.TemporaryDirectory(prefix="audiotag_kit_") as room:
        write_single_file(Path(room) / "audiotag_kit.py")
        for path in sorted((folder / "run").glob("fold_*.pt")):
            shutil.copy(path, room)
        places = {"audio": data.test, "template": data.template, "out": folder / "submission.csv"}
        words = ["--checkpoints=fold_*.pt", "--deadline=5m", "--no-progress"]
        words += [f"--{name}={path.resolve()}" for name, path in places.items()]
        began = time.perf_counter()
        command = [sys.executable, "-P", "audiotag_kit.py", "submit", *words]
        code = subprocess.run(command, cwd=room, check=False).returncode
        if code:
            raise KitError(f"the single file ended with exit code {code}, see above.")
        return time.perf_counter() - began


def write_single_file(path: Path) -> None:
    """A copy of the single file, or a fresh build from the package."""
    if source := source_file():
        shutil.copy(source, path)
        return
    builder = source_root() / "build_single_file.py"
    if not builder.is_file():
        raise KitError(f"no {builder}: run the repository's kit or the single file.")
    command = [sys.executable, str(builder), "--out", str(path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise KitError(f"the single file cannot be built: {built.stderr}")


def score_csv(path: Path, truth_path: Path) -> tuple[float, float]:
    """The lwlrap of a submission, and of class frequencies for every clip.

    Labels are the truth's `true_labels` where it has them, else its `labels`.
    """
    table = read_clip_table(truth_path)
    header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    scores = {name: list(map(float, row)) for name, *row in rows}
    truth = label_targets(list(table.get("true_labels", table["labels"])), header[1:])
    predicted = [scores[name] for name in table["fname"]]
    return lwlrap(truth, predicted), lwlrap(truth, np.tile(truth.mean(axis=0), (len(truth), 1)))
