"""Nothing in, the whole job done on toy data out."""

import csv
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kit.core.errors import KitError
from kit.core.supervise import own_root, own_source
from kit.labels.metrics import lwlrap
from kit.labels.table import label_targets, read_clip_table
from kit.learn.train import train_run
from kit.recipes import find_recipe
from kit.sound.decode import header_duration_s, list_audio
from kit.toydata import make_toy_set

DEMO_SETTINGS = (
    "frontend.sample_rate=22050 frontend.hop_length=512 frontend.n_fft=1024 frontend.n_mels=64 network.width=12 "
    "crop_s=2.5 epochs=24 plain_epochs=4 n_folds=2 validate_every=24"
)


def run_demo(out: str = "demo", clips: int = 240, test: int = 60, epochs: int | None = None) -> str:
    """Make toy data, train two small folds, and submit from the single file.

    Options:
        out: the folder to work in
        clips: training clips
        test: test clips
        epochs: epochs per fold
    """
    began, folder = time.perf_counter(), Path(out)
    data = folder / "data"
    make_toy_set(data, clips, test)
    settings = [*DEMO_SETTINGS.split(), *([] if epochs is None else [f"epochs={epochs}"])]
    recipe = find_recipe("max-pyramid-mel", small=True, overrides=settings)
    print(train_run(recipe, data / "train.csv", data / "train", folder / "run"), flush=True)
    seconds = submit_from_single_file(folder)
    audio_s = sum(header_duration_s(path) or 0.0 for path in list_audio(data / "test"))
    score, prior = score_csv(folder / "submission.csv", data / "test_truth.csv")
    return (
        f"test lwlrap {score:.4f} (class frequencies alone: {prior:.4f})\n"
        f"submitted {audio_s:.0f} s of audio in {seconds:.1f} s with start-up: {audio_s / seconds:.0f} times as fast\n"
        f"the demo took {time.perf_counter() - began:.0f} s; the CSV is {folder / 'submission.csv'}"
    )


def submit_from_single_file(folder: Path) -> float:
    """Seconds of submitting in a process of its own, from the single file."""
    with tempfile.TemporaryDirectory(prefix="audiotag_kit_") as room:
        write_single_file(Path(room) / "audiotag_kit.py")
        for path in sorted((folder / "run").glob("fold_*.pt")):
            shutil.copy(path, room)
        data, out = folder.resolve() / "data", folder.resolve() / "submission.csv"
        words = ["--checkpoints=fold_*.pt", "--deadline=5m", "--no-progress", f"--audio={data / 'test'}"]
        words += [f"--template={data / 'sample_submission.csv'}", f"--out={out}"]
        began = time.perf_counter()
        command = [sys.executable, "-P", "audiotag_kit.py", "submit", *words]
        code = subprocess.run(command, cwd=room, check=False).returncode
        if code:
            raise KitError(f"the single file ended with exit code {code}, see above.")
        return time.perf_counter() - began


def write_single_file(path: Path) -> None:
    """A copy of the single file, or a fresh build from the package."""
    if source := own_source():
        shutil.copy(source, path)
        return
    builder = own_root() / "build_single_file.py"
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
