"""The README in; its commands, cells and code run in an empty room, in order, or the line that fails, out.

The room holds the kit as it stands and toy data under the names that the README uses. Commands of Python run in forks
of this process, which has imported torch once, as they would by themselves; all others run in bash.

    python -m tests.house.docs_check [README]
"""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from tests.house.minikit import ROOT
from tests.house.readme_steps import Step, add_parts, steps_of

# Commands that are not run here, by how they begin, and why.
LEFT_OUT = {
    "make demo": "sets up an environment; tests/behaviour/test_demo.py runs what it runs",
    "make test": "this check is a part of it",
    "make docs-check": "this is it",
    "make bench": "takes minutes",
    "python ../shared/": "wants data beside the repository; the room holds toy data in their place",
}
# What is added behind a verb, before the README's own words, so that it takes seconds.
QUICK = {
    "train": "--set epochs=1 no_augment_epochs=0 finetune_epochs=0 validate_every=1 n_folds=2 batch_size=8 sampling.steps=2 "
    "frontend.sample_rate=16000 self_training.hop_s=2.0",
    "folds": "--n-folds 2",
    "stack": "--set=epochs=2",
}
KAGGLE = "/kaggle/input"
NOT_CLONED = (
    ".*", "__pycache__", "*.egg-info", "audiotag_kit.py", "kaggle_dataset", "demo", "build", "dist", "runs"
)  # fmt: skip
LIMIT_S = 300
WARM = "import torch, torchaudio, pandas, soundfile, tqdm.auto, timm, matplotlib.pyplot, IPython, pytest, sklearn"


def reason_left_out(step: Step) -> str | None:
    """Why a step is not run, if it is not."""
    reasons = (why for begin, why in LEFT_OUT.items() if step.text.startswith(begin))
    return next(reasons, None) if step.kind == "command" else None


def words_of(command: str, room: Path) -> list[str] | None:
    """A command's words as bash expands them; None where it is more than one simple command."""
    parts = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
    parts.whitespace_split = True
    try:
        simple = not any({*part} <= {*"();<>|&"} for part in parts)
    except ValueError:  # a quotation without end, of which bash will complain
        simple = False
    if not simple:
        return None
    asked = ["bash", "-c", f"printf '%s\\0' {command}"]
    return subprocess.run(asked, cwd=room, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def python_job(words: list[str]) -> Callable[[], object] | None:
    """What `[NAME=VALUE ...] python WORDS` does, a file or a module, with the words of QUICK; None for another."""
    settings = [*takewhile(lambda word: re.match(r"\w+=", word), words)]
    if words[len(settings)] != "python":
        return None
    words = words[len(settings) + 1 :]
    module = words[0] == "-m"
    name, *rest = words[1:] if module else words
    if rest and name in ("audiotag_kit.py", "kit"):
        rest[1:1] = QUICK.get(rest[0], "").split()

    def run() -> object:
        os.environ.update(word.split("=", 1) for word in settings)
        sys.argv = [name, *rest]
        if module:
            return runpy.run_module(name, run_name="__main__", alter_sys=True)
        return runpy.run_path(name, run_name="__main__")

    return run


def run_script(text: str) -> None:
    """Python code as a file of its own."""
    exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})


def run_cell(text: str) -> None:
    """A notebook's cell, under IPython."""
    from IPython.core.interactiveshell import InteractiveShell

    if not InteractiveShell.instance().run_cell(text).success:
        raise SystemExit(1)


def in_fork(job: Callable[[], object], room: Path) -> tuple[int, str]:
    """Do something in a fork of this process, in the room, by the room's own kit; its exit code and what it said."""
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            signal.alarm(LIMIT_S)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os._exit(done_here(job, room))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read().decode(errors="replace")


def done_here(job: Callable[[], object], room: Path) -> int:
    """Do it in this process, as though Python had begun in the room; the exit code."""
    os.chdir(room)
    ours = [name for name in sys.modules if name.partition(".")[0] in ("kit", "tests", "build_single_file")]
    for name in ours:
        del sys.modules[name]
    sys.path[:] = [str(room), *(path for path in sys.path if path not in ("", str(ROOT)))]
    try:
        job()
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def do_step(step: Step, room: Path) -> tuple[int, str]:
    """Run a step in the room; its exit code and what it said."""
    text = step.text.replace(KAGGLE, f"{room}{KAGGLE}")
    runs = {"script": run_script, "cell": run_cell, "addition": lambda text: add_parts(text, room)}
    if step.kind in runs:
        return in_fork(lambda: runs[step.kind](text), room)
    words = words_of(text, room)
    if words and (job := python_job(words)):
        return in_fork(job, room)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["bash", "-c", text], cwd=room, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout


def furnish(room: Path) -> None:
    """The bundle, toy data and checkpoints under the names that the README uses, by the room's own kit."""
    import torch
    from torch import nn

    from build_single_file import BUNDLE, build
    from kit.models.checkpoint import save_tagger
    from kit.models.tagger import TaggerCard, build_tagger
    from kit.toydata import TOY_CLASSES, make_toy_set, make_toy_soundscapes
    from kit.train.recipes import find_recipe

    (room / BUNDLE).write_text(build(room), encoding="utf-8")
    make_toy_set(room, clips=24, test=6)
    make_toy_soundscapes(room / "scapes", recordings=8, test=1)
    for table in ("train_tp.csv", "train_fp.csv"):
        (room / table).write_text((room / "scapes" / table).read_text().replace("train_", "recording_"))
    for clip in (room / "scapes" / "train").iterdir():
        clip.rename(room / "train" / clip.name.replace("train_", "recording_"))
    make_toy_set(room / "task", clips=24, test=6)
    for name in ("train", "train.csv"):
        (room / "task" / name).rename(room / "task" / name.replace("train", "train_curated"))
    inputs = room / KAGGLE.lstrip("/")
    shutil.copytree(room / "test", inputs / "competition" / "test")
    shutil.copy(room / "sample_submission.csv", inputs / "competition")
    (inputs / "audiotag-kit").mkdir()
    shutil.copy(room / BUNDLE, inputs / "audiotag-kit")
    recipe = find_recipe(
        "max-pyramid-mel", small=True, overrides=["frontend.sample_rate=16000", "network.width=4"]
    )
    card = TaggerCard(TOY_CLASSES, frontend=recipe.frontend, network=recipe.network)
    for folder in (room / "folds", inputs / "my-folds"):
        for fold in (0, 1):
            save_tagger(folder / f"fold_{fold}.pt", build_tagger(card))
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    torch.save(nn.Sequential(*layers).state_dict(), room / "my_fold_0.pth")


def make_room(room: Path) -> None:
    """The repository as a fresh clone of it, then what it works on. Errors: SystemExit where that cannot be made"""
    shutil.copytree(ROOT, room, ignore=shutil.ignore_patterns(*NOT_CLONED), dirs_exist_ok=True)
    code, said = in_fork(lambda: furnish(room), room)
    if code:
        raise SystemExit(f"the room for the README cannot be made:\n{said}")


def check_readme(readme: Path, room: Path) -> int:
    """Run what the README shows, in order, up to what fails; 1 where something does, else 0."""
    began, steps = time.perf_counter(), list(steps_of(readme.read_text(encoding="utf-8")))
    left = [step for step in steps if reason_left_out(step)]
    for step in steps:
        place, start = f"{readme.name}:{step.line}", time.perf_counter()
        if step in left:
            print(f"left out  {place:15}  {step.shown}: {reason_left_out(step)}")
            continue
        code, said = do_step(step, room)
        print(f"{time.perf_counter() - start:6.1f} s  {place:15}  {step.shown}", flush=True)
        if code:
            print(said[-6000:], f"{place}: this {step.kind} ended with {code}:\n{step.text}", sep="\n")
            print(
                "Mend the README or the kit; what cannot run here goes to LEFT_OUT in tests/house/docs_check.py."
            )
            return 1
    spent = time.perf_counter() - began
    print(f"{readme.name}: {len(steps) - len(left)} run, {len(left)} left out, in {spent:.0f} s")
    return 0


def main(words: list[str]) -> int:
    """Check a README, the repository's unless another is given; the exit code."""
    readme = Path(words[0]).resolve() if words else ROOT / "README.md"
    exec(WARM, {})
    with tempfile.TemporaryDirectory(prefix="audiotag_kit_") as folder:
        room = Path(folder).resolve()
        os.environ.update(HOME=str(room), IPYTHONDIR=str(room), MPLBACKEND="agg")
        make_room(room)
        return check_readme(readme, room)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
