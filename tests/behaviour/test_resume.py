"""Law 7: a kill at any instant leaves a whole CSV, and the same command ends where it would have ended."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger
from tests.behaviour.trained import (
    LoudBands,
    Trained,
    loud_tagger,
    noise,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)

TIMEOUT_S = 60.0


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start a process that is ended, whatever happens, when the test is over."""
    children: list[subprocess.Popen[bytes]] = []

    def start_child(command: list[str], **environment: str) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        children.append(child)
        return child

    yield start_child
    for child in children:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_until(has_happened: Callable[[], Any], child: "subprocess.Popen[bytes]") -> bool:
    """Poll until something happened (true) or the process ended without it (false); fails after a minute."""
    limit = time.monotonic() + TIMEOUT_S
    while time.monotonic() < limit:
        if has_happened():
            return True
        if child.poll() is not None:
            return bool(has_happened())
        time.sleep(0.001)
    raise AssertionError("the process did nothing for a minute")


def state_files(out: Path) -> list[Path]:
    """The predictions kept beside a CSV, part files left out."""
    return sorted(out.with_name(out.name + ".state").glob("[!.]*.npz"))


def test_killed_again_and_again_the_same_command_ends_with_the_same_bytes(
    kit_command: list[str], trained: Trained, clips: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    template = write_template(
        tmp_path / "t.csv", [path.name for path in sorted(clips.iterdir())[::-1]], trained.classes
    )
    reference, out = tmp_path / "reference.csv", tmp_path / "killed" / "out.csv"
    base = [*kit_command, "submit", "--audio", str(clips), "--template", str(template), "--no-progress"]
    base += ["--checkpoints", *trained.all]
    whole = start([*base, "--out", str(reference)])
    instants: list[Callable[[], Any]] = [
        out.exists,
        lambda: state_files(out),
        lambda: len(state_files(out)) >= 2,
    ]
    for happened in instants:
        child = start([*base, "--out", str(out)])
        assert wait_until(happened, child)
        child.send_signal(signal.SIGKILL)
        child.wait()
        header, rows = read_scores(out)
        assert header[1:] == list(trained.classes) and list(rows) == list(read_ids(template))
    assert whole.wait(timeout=TIMEOUT_S) == 0
    assert start([*base, "--out", str(out)]).wait(timeout=TIMEOUT_S) == 0
    assert out.read_bytes() == reference.read_bytes()
    assert not list(out.parent.rglob("*.part"))


def read_ids(path: Path) -> list[str]:
    """The ids of a CSV."""
    return [line.split(",")[0] for line in path.read_text().splitlines()[1:]]


def test_a_worker_ends_with_its_killed_supervisor(
    kit_command: list[str], trained: Trained, clips: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    """The worker writes its process id, and would read its first clip for ever."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, threading\n"
        "if os.environ.get('AUDIOTAG_KIT_WORKER') == '1':\n"
        "    import soundfile\n"
        "    def hang(*arguments, **options):\n"
        "        with open(os.environ['PID_FILE'] + '.part', 'w') as handle:\n"
        "            handle.write(str(os.getpid()))\n"
        "        os.replace(os.environ['PID_FILE'] + '.part', os.environ['PID_FILE'])\n"
        "        threading.Event().wait()\n"
        "    soundfile.SoundFile = hang\n"
    )
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    words = ["--audio", str(clips), "--out", str(tmp_path / "out.csv"), "--deadline", "10m", "--no-progress"]
    child = start(
        [*kit_command, "submit", "--checkpoints", trained.mel[0], *words],
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        PID_FILE=str(tmp_path / "pid"),
    )
    assert wait_until((tmp_path / "pid").exists, child)
    worker = int((tmp_path / "pid").read_text())
    child.send_signal(signal.SIGKILL)
    child.wait()
    limit = time.monotonic() + 5.0
    try:
        while alive(worker) and time.monotonic() < limit:
            time.sleep(0.01)
        assert not alive(worker)
    finally:
        with contextlib.suppress(OSError):
            os.kill(worker, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Stop(BaseException):
    """What a kill looks like from inside."""


class Counting(LoudBands):
    """A network that counts its batches, and ends the process at one of them."""

    def __init__(self, ends_at: int | None = None) -> None:
        super().__init__(3)
        self.batches, self.ends_at = 0, ends_at

    def forward(self, spec: Any) -> Any:
        self.batches += 1
        if self.batches == self.ends_at:
            raise Stop
        return super().forward(spec)


def custom_checkpoints(folder: Path, count: int) -> list[Path]:
    """Checkpoints of custom networks, each with another scale."""
    paths = []
    for k in range(count):
        network = LoudBands(3)
        torch.nn.init.constant_(network.scale, 0.2 + 0.1 * k)
        paths.append(folder / f"custom_{k}.pt")
        save_tagger(paths[-1], custom_tagger(network, k))
    return paths


def custom_tagger(network: LoudBands, k: int) -> Tagger:
    """A tagger of a custom network with the name net<k>."""
    tagger: Tagger = loud_tagger(network, name=f"net{k}")
    return tagger


def test_killed_at_any_batch_of_any_model_the_rest_is_done_and_nothing_twice(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", [f"{i:02d}.wav" for i in range(60)], samples=900)
    paths = custom_checkpoints(tmp_path, 3)

    def once(out: str, ends_at: tuple[int, int] | None = None) -> list[int]:
        """Submit; batches that each model computed."""
        networks = [Counting(ends_at[1] if ends_at and ends_at[0] == k else None) for k in range(3)]
        builders = {f"net{k}": (lambda k=k: networks[k]) for k in range(3)}
        with contextlib.suppress(Stop):
            submit(paths, tmp_path / "in", tmp_path / out, networks=builders, batch_frames=40, progress=False)
        return [network.batches for network in networks]

    whole = once("reference.csv")
    assert min(whole) >= 5
    for model in range(3):
        for batch in (1, 2, whole[0]):
            out = f"killed_{model}_{batch}.csv"
            once(out, ends_at=(model, batch))
            _, rows = read_scores(tmp_path / out)
            assert len(rows) == 60
            again = once(out)
            assert again[:model] == [0] * model, "a finished model computed again"
            assert (tmp_path / out).read_bytes() == (tmp_path / "reference.csv").read_bytes()
    assert once("reference.csv") == [0, 0, 0]


def test_files_of_one_content_make_no_difference_to_a_second_run(trained: Trained, tmp_path: Path) -> None:
    """25 clips of one length make a chunk of 24 and one of 1, whose batches round differently."""
    for i in range(24):
        write_wav(tmp_path / "in" / f"{i:02d}.wav", noise(24000, seed=i))
    for i in range(24):
        shutil.copy(tmp_path / "in" / f"{i:02d}.wav", tmp_path / "in" / f"copy_{i:02d}.wav")
    write_wav(tmp_path / "in" / "0_first.wav", noise(24000, seed=99))
    first, second = (
        (submit(trained.all, tmp_path / "in", tmp_path / "out.csv", progress=False).csv).read_bytes()
        for _ in range(2)
    )
    assert first == second


@pytest.fixture
def small(clips: Path, tmp_path: Path) -> Path:
    """A few of the clips, free to be changed."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted(clips.iterdir())[3:9]:
        shutil.copy(path, folder)
    return folder


def test_a_file_that_changed_is_predicted_anew(trained: Trained, small: Path, tmp_path: Path) -> None:
    submit(trained.all, small, tmp_path / "out.csv", progress=False)
    names = sorted(path.name for path in small.iterdir())
    first = (small / names[0]).read_bytes()
    (small / names[0]).write_bytes((small / names[3]).read_bytes())
    (small / names[3]).write_bytes(first)
    (small / names[1]).write_bytes(b"no longer a sound")
    submit(trained.all, small, tmp_path / "out.csv", progress=False)
    submit(trained.all, small, tmp_path / "fresh.csv", progress=False)
    _, again = read_scores(tmp_path / "out.csv")
    _, fresh = read_scores(tmp_path / "fresh.csv")
    np.testing.assert_allclose(list(again.values()), list(fresh.values()), rtol=0, atol=1e-6)


def test_a_new_file_among_known_ones_is_predicted(trained: Trained, small: Path, tmp_path: Path) -> None:
    submit(trained.all, small, tmp_path / "out.csv", progress=False)
    write_wav(sorted(small.iterdir())[2], noise(9000, seed=77))
    report = submit(trained.all, small, tmp_path / "out.csv", progress=False).report
    submit(trained.all, small, tmp_path / "fresh.csv", progress=False)
    assert [model["failure"] for model in report["models"]] == [None] * len(trained.all)
    _, again = read_scores(tmp_path / "out.csv")
    _, fresh = read_scores(tmp_path / "fresh.csv")
    np.testing.assert_allclose(list(again.values()), list(fresh.values()), rtol=0, atol=1e-6)


def test_a_checkpoint_that_changed_behind_its_name_is_predicted_anew(
    trained: Trained, small: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model.pt"
    for source in (*trained.mel, trained.windows):
        shutil.copy(source, checkpoint)
        submit(checkpoint, small, tmp_path / "out.csv", progress=False)
        submit(source, small, tmp_path / f"fresh_{Path(source).stem}.csv", progress=False)
        assert (tmp_path / "out.csv").read_bytes() == (
            tmp_path / f"fresh_{Path(source).stem}.csv"
        ).read_bytes()


def test_other_inference_settings_do_not_reuse_the_old_state(
    trained: Trained, small: Path, tmp_path: Path
) -> None:
    settings: list[dict[str, Any]] = [
        {}, {"mode": "windows", "window_s": 1.0}, {"mode": "windows", "window_s": 1.0, "hop_s": 0.3},
        {"precision": "bfloat16"}, {"pool": "mean"}, {},
    ]  # fmt: skip
    for k, options in enumerate(settings):
        options = options if options.get("mode") is None else {"hop_s": 0.5} | options
        submit(trained.mel[0], small, tmp_path / "out.csv", progress=False, **options)
        submit(trained.mel[0], small, tmp_path / f"fresh_{k}.csv", progress=False, **options)
        assert (tmp_path / "out.csv").read_bytes() == (tmp_path / f"fresh_{k}.csv").read_bytes(), options


def test_another_calibration_of_the_same_weights_is_used(
    trained: Trained, small: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    tagger = load_tagger(trained.mel[0])
    assert tagger.card.calibration is not None
    moved = replace(tagger.card.calibration, offset=tagger.card.calibration.offset + 1.0)
    save_tagger(tmp_path / "fold_0.pt", tagger)
    submit(tmp_path / "fold_0.pt", small, tmp_path / "out.csv", progress=False)
    _, before = read_scores(tmp_path / "out.csv")
    save_tagger(tmp_path / "fold_0.pt", Tagger(replace(tagger.card, calibration=moved), tagger.network))
    submit(tmp_path / "fold_0.pt", small, tmp_path / "out.csv", progress=False)
    _, after = read_scores(tmp_path / "out.csv")
    assert all((after[name] > before[name]).all() for name in before)


def test_part_files_and_rubbish_are_never_used_as_results(
    trained: Trained, small: Path, tmp_path: Path
) -> None:
    submit(trained.mel[0], small, tmp_path / "fresh.csv", progress=False)
    state = tmp_path / "out.csv.state"
    state.mkdir()
    kept = state_files(tmp_path / "fresh.csv")[0]
    other = state_file_of_another_model(trained, small, tmp_path)
    (state / f".{kept.name}.part").write_bytes(other.read_bytes())
    (state / "rubbish.npz").write_bytes(b"rubbish")
    (tmp_path / ".out.csv.part").write_text("fname,nothing\nhalf a li")
    (tmp_path / "out.csv").write_text("an old half-written thi")
    submit(trained.mel[0], small, tmp_path / "out.csv", progress=False)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "fresh.csv").read_bytes()


def state_file_of_another_model(trained: Trained, folder: Path, tmp_path: Path) -> Path:
    """The state file of the other fold's predictions."""
    submit(trained.mel[1], folder, tmp_path / "other.csv", progress=False)
    return state_files(tmp_path / "other.csv")[0]


def test_a_state_file_cut_short_costs_time_and_nothing_else(
    trained: Trained, small: Path, tmp_path: Path
) -> None:
    submit(trained.mel[0], small, tmp_path / "out.csv", progress=False)
    expected = (tmp_path / "out.csv").read_bytes()
    kept = state_files(tmp_path / "out.csv")[0]
    kept.write_bytes(kept.read_bytes()[:-20])
    submit(trained.mel[0], small, tmp_path / "out.csv", progress=False)
    assert (tmp_path / "out.csv").read_bytes() == expected


def test_a_second_run_that_is_killed_at_once_leaves_the_first_ones_csv(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", ["a.wav", "b.wav"])
    paths = custom_checkpoints(tmp_path, 2)
    networks: dict[str, Any] = {"net0": lambda: LoudBands(3), "net1": lambda: LoudBands(3)}
    submit(paths, tmp_path / "in", tmp_path / "out.csv", networks=networks, progress=False)
    done = (tmp_path / "out.csv").read_bytes()

    def die() -> LoudBands:
        raise Stop

    with pytest.raises(Stop):
        submit(
            paths, tmp_path / "in", tmp_path / "out.csv", networks=networks | {"net1": die}, progress=False
        )
    assert (tmp_path / "out.csv").read_bytes() == done
