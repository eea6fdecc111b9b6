"""The command line: every wrong input is one line with the cure and the exit code 2, never a traceback."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit.__main__ import COMMANDS
from kit.cli import run_command
from kit.core.runtime import WORKER_MARK
from kit.core.worker import ERROR_MARK
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger
from tests.behaviour.trained import Trained, loud_tagger, read_scores, write_template

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Obey a command line in this process: its exit code, what it printed, what it complained."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(COMMANDS, [str(word) for word in words])
        out, complaints = capsys.readouterr()
        return code, out, complaints

    return run


def test_submit_by_the_command_line_writes_what_python_would(
    say: Say, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    pattern = Path(trained.mel[0]).parent / "fold_*.pt"
    code, out, complaints = say(
        "submit", "--checkpoints", pattern, trained.stft, "--audio", clips, "--out", tmp_path / "a.csv",
        "--weights", "1,2,0.5", "--blend", "geometric", "--no-progress",
    )  # fmt: skip
    assert (code, complaints) == (0, "") and "14 heard by all of 3 models" in out
    again = say(
        "submit", f"--checkpoints={trained.mel[0]}", f"--checkpoints={trained.mel[1]}", "--checkpoints", trained.stft,
        "--audio", clips, "--out", tmp_path / "b.csv", "--weights", "1", "--weights=2", "--weights", "0.5",
        "--blend=geometric", "--no-progress",
    )  # fmt: skip
    assert again[0] == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def wrong_words(trained: Trained, clips: Path, folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    """What is changed on a good command line, and words that the complaint must hold."""
    template = write_template(folder / "t.csv", ["a", "b"], trained.classes)
    twice = write_template(folder / "twice.csv", ["a", "a"], trained.classes)
    alien = write_template(folder / "alien.csv", ["a"], ["Bark", *trained.classes])
    (folder / "junk.pt").write_bytes(b"\x80junk")
    torch.save([1, 2], folder / "list.pt")
    (folder / "file").write_text("x")
    return {
        "no such folder": ({"--audio": folder / "nowhere"}, "does not exist: give the folder"),
        "a file for a folder": ({"--audio": template}, "is a file, not a folder"),
        "no such checkpoint": ({"--checkpoints": folder / "x*.pt"}, "no checkpoint matches"),
        "junk for a checkpoint": ({"--checkpoints": folder / "junk.pt"}, "save_tagger"),
        "a checkpoint from elsewhere": ({"--checkpoints": folder / "list.pt"}, "save_tagger"),
        "no such template": ({"--template": folder / "none.csv"}, "cannot read"),
        "an id twice": ({"--template": twice}, "'a'"),
        "unknown classes": ({"--template": alien}, "'Bark'"),
        "a folder below a file": ({"--out": folder / "file" / "o.csv"}, "cannot write"),
        "a folder for a file": ({"--out": folder}, "cannot write"),
        "an unknown blend": ({"--blend": "avg"}, "geometric, mean, power, rank"),
        "an unknown mode": ({"--mode": "whole"}, "full, windows"),
        "an unknown pool": ({"--pool": "maximum"}, "did you mean 'max'"),
        "an unknown precision": ({"--precision": "float8"}, "bfloat16, float16, float32"),
        "an unknown device": ({"--device": "quantum"}, "no device is called"),
        "a device that is not here": ({"--device": "cuda:99"}, "cannot compute"),
        "no duration": ({"--deadline": "an hour"}, "like 55m, 1h30m or 90s"),
        "no time at all": ({"--deadline": "0"}, "like 55m, 1h30m or 90s"),
        "weights that are words": ({"--weights": "a,b"}, "--weights"),
        "too few weights": ({"--weights": "1"}, "one positive number per model"),
        "a number that is a word": ({"--threads": "many"}, "--threads"),
        "an option that is not": ({"--treads": "2"}, "did you mean '--threads'"),
        "an option cut short": ({"--aud": "x"}, "did you mean '--audio'"),
        "a value for a switch": ({"--no-progress": "yes"}, "yes"),
    }


def test_every_wrong_input_is_one_line_and_exit_code_2(
    say: Say, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    for case, (changes, words) in wrong_words(trained, clips, tmp_path).items():
        good: dict[str, object] = {
            "--checkpoints": Path(trained.mel[0]).parent / "fold_*.pt",
            "--audio": clips,
            "--out": tmp_path / "out.csv",
        }
        words_in_pairs = [word for pair in (good | changes).items() for word in pair]
        code, _, complaints = say("submit", "--no-progress", *words_in_pairs)
        assert code == 2, case
        assert complaints.startswith("audiotag-kit: ") and complaints.count("\n") == 1, (case, complaints)
        assert words in complaints and "Traceback" not in complaints, (case, complaints)


def test_wrong_verbs_and_missing_options_list_the_right_ones(say: Say) -> None:
    for words, wanted in (
        (["sumbit"], "did you mean 'submit'"),
        (["submit"], "--checkpoints"),
        (["submit", "--audio", "x"], "--checkpoints"),
        (["recipes", "max-piramid-mel"], "did you mean 'max-pyramid-mel'"),
        (["train", "--recipe", "x", "--table", "x", "--audio", "x", "--out", "x"], "max-pyramid-mel"),
    ):
        code, out, complaints = say(*words)
        assert code == 2 and not out and complaints.count("\n") == 1 and wanted in complaints, complaints


def test_help_and_the_overview_end_well(say: Say) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        code, out, _ = say(*words)
        assert code == 0 and all(f"  {command} " in out for command in COMMANDS)
    for command in COMMANDS:
        code, out, _ = say(command, "--help")
        assert code == 0 and "usage:" in out
    code, out, _ = say("submit", "--help")
    for option in (
        "--checkpoints",
        "--audio",
        "--out",
        "--template",
        "--deadline",
        "--started-at",
        "--blend",
    ):
        assert option in out
    assert say("--version")[0] == 0


def test_doctor_tells_of_every_checkpoint_and_fails_where_one_cannot_be_used(
    say: Say, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    save_tagger(tmp_path / "own.pt", loud_tagger())
    good = ["--checkpoints", trained.stft, tmp_path / "own.pt"]
    code, out, complaints = say("doctor", *good, "--audio", clips, "--deadline", "9m")
    assert (code, complaints) == (0, "") and "14 audio files" in out
    assert f"{trained.stft}: max-pyramid, " in out and "own.pt: custom:own, 0.00 M values, 3 classes" in out
    (tmp_path / "junk.pt").write_bytes(b"\x80junk")
    tagger = load_tagger(trained.stft)
    network = tagger.card.network | {"width": 16}
    save_tagger(tmp_path / "unfit.pt", Tagger(replace(tagger.card, network=network), tagger.network))
    code, out, complaints = say(
        "doctor", *good, tmp_path / "junk.pt", tmp_path / "unfit.pt", "--audio", clips
    )
    assert code == 2 and complaints == "audiotag-kit: 2 of 4 checkpoints cannot be used, as said above.\n"
    assert "junk.pt: NOT USABLE: " in out and "its tensors do not fit its network" in out
    assert f"{trained.stft}: max-pyramid, " in out and "14 audio files" in out


def test_a_worker_marks_its_error_for_the_supervisor(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKER_MARK, "1")
    code, out, complaints = say("submit", "--checkpoints", "none.pt", "--audio", ".")
    assert code == 2 and complaints == "" and out.startswith(ERROR_MARK) and "no checkpoint" in out


def test_as_a_process_errors_go_to_stderr_with_code_2_and_a_csv_with_code_0(
    kit_command: list[str], trained: Trained, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    template = write_template(tmp_path / "t.csv", ["000316"], trained.classes)
    base = [*kit_command, "submit", "--template", str(template), "--checkpoints", trained.mel[0], "--audio"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    bad = subprocess.run(
        [*base, "nowhere"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.count("\n") == 1
    assert not (tmp_path / "submission.csv").exists()
    good = subprocess.run(
        [*base, "empty"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert good.returncode == 0 and "NO AUDIO FILES" in good.stdout and "Traceback" not in good.stderr
    assert list(read_scores(tmp_path / "submission.csv")[1]) == ["000316"]
