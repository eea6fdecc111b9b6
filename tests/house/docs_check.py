'''Run every command, notebook cell and code block of the documentation, and stop at the first that fails.

They run in a temporary folder that holds a copy of the repository, and toy data under the names that the pages use.
Python commands run in forks of this process, which has imported torch once; all others run in bash.

    python -m tests.house.docs_check [PAGE ...]
'''

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

PAGES = ('README.md', 'kit/README.md', 'tests/benchmarks/README.md')
# Commands that are not run here, by how they begin, and why.
SKIPPED = {
    'make demo': 'sets up an environment; tests/behaviour/test_demo.py runs what it runs',
    'make test': 'this check is a part of it',
    'make docs-check': 'this is that check',
    **dict.fromkeys(
        ('make bench', 'make birdclef', 'make esc10', 'make pools', 'make recipes', 'make study', 'make torture'),
        'takes minutes or hours',
    ),
    'python -m tests.benchmarks ': 'takes minutes',
    'python ../shared/': 'wants data beside the repository; the workspace holds toy data in their place',
}
# What is added behind a verb, before the page's own words, so that it takes seconds.
QUICK = {
    'train': '--set epochs=1 no_augment_epochs=0 validate_every=1 n_folds=2 batch_size=8 '
    'sampling.steps=2 frontend.sample_rate=16000 self_training.hop_s=2.0',
    'folds': '--n-folds 2',
    'stack': '--set=epochs=2',
}
KAGGLE = '/kaggle/input'
NOT_CLONED = (
    '.*', '__pycache__', '*.egg-info', 'audiotag_kit.py', 'kaggle_dataset', 'demo', 'build', 'dist', 'runs'
)  # fmt: skip
LIMIT_S = 300
WARM = 'import torch, torchaudio, pandas, soundfile, tqdm.auto, timm, matplotlib.pyplot, IPython, pytest, sklearn'


def reason_to_skip(step: Step) -> str | None:
    '''Why a step is not run, if it is not.'''
    reasons = (why for begin, why in SKIPPED.items() if step.text.startswith(begin))
    return next(reasons, None) if step.kind == 'command' else None


def split_command(command: str, workspace: Path) -> list[str] | None:
    '''A command's words as bash expands them; None where it is more than one simple command.'''
    parts = shlex.shlex(command.replace('\\\n', ' '), posix=True, punctuation_chars=True)
    parts.whitespace_split = True
    try:
        simple = not any({*part} <= {*'();<>|&'} for part in parts)
    except ValueError:  # a quotation without end, of which bash will complain
        simple = False
    if not simple:
        return None
    asked = ['bash', '-c', f"printf '%s\\0' {command}"]
    return subprocess.run(asked, cwd=workspace, capture_output=True, text=True, check=True).stdout.split('\0')[:-1]


def python_job(words: list[str]) -> Callable[[], object] | None:
    '''What `[NAME=VALUE ...] python WORDS` does, a file or a module, with the words of QUICK; None for another.'''
    settings = [*takewhile(lambda word: re.match(r'\w+=', word), words)]
    if words[len(settings)] != 'python':
        return None
    words = words[len(settings) + 1 :]
    module = words[0] == '-m'
    name, *rest = words[1:] if module else words
    if rest and name in ('audiotag_kit.py', 'kit'):
        rest[1:1] = QUICK.get(rest[0], '').split()

    def run() -> object:
        os.environ.update(word.split('=', 1) for word in settings)
        sys.argv = [name, *rest]
        if module:
            return runpy.run_module(name, run_name='__main__', alter_sys=True)
        return runpy.run_path(name, run_name='__main__')

    return run


def run_script(text: str) -> None:
    '''Python code as a file of its own.'''
    exec(compile(text, 'a page', 'exec'), {'__name__': '__main__'})


def run_cell(text: str) -> None:
    '''A notebook's cell, under IPython.'''
    from IPython.core.interactiveshell import InteractiveShell

    if not InteractiveShell.instance().run_cell(text).success:
        raise SystemExit(1)


def run_in_fork(job: Callable[[], object], workspace: Path) -> tuple[int, str]:
    '''Run a job in a fork, in the workspace and by its kit; return the exit code and the output.'''
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            signal.alarm(LIMIT_S)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(run_here(job, workspace))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read().decode(errors='replace')


def run_here(job: Callable[[], object], workspace: Path) -> int:
    '''Do it in this process, as though Python had begun in the workspace; the exit code.'''
    os.chdir(workspace)
    ours = [name for name in sys.modules if name.partition('.')[0] in ('kit', 'tests', 'build_single_file')]
    for name in ours:
        del sys.modules[name]
    sys.path[:] = [str(workspace), *(path for path in sys.path if path not in ('', str(ROOT)))]
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


def run_step(step: Step, workspace: Path) -> tuple[int, str]:
    '''Run a step in the workspace; its exit code and its output.'''
    text = step.text.replace(KAGGLE, f'{workspace}{KAGGLE}')
    runs = {'script': run_script, 'cell': run_cell, 'addition': lambda text: add_parts(text, workspace)}
    if step.kind in runs:
        return run_in_fork(lambda: runs[step.kind](text), workspace)
    words = split_command(text, workspace)
    if words and (job := python_job(words)):
        return run_in_fork(job, workspace)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    ran = subprocess.run(
        ['bash', '-c', text], cwd=workspace, env=os.environ | {'PATH': path}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout


def fill_workspace(workspace: Path) -> None:
    '''The bundle, toy data and checkpoints under the names that the pages use, by the workspace's own kit.'''
    import torch
    from torch import nn

    from build_single_file import BUNDLE, build
    from kit.demo import TOY_CLASSES, make_toy_set, make_toy_soundscapes
    from kit.models.checkpoint import save_tagger
    from kit.models.tagger import TaggerCard, build_tagger
    from kit.train.recipes import find_recipe
    from tests.behaviour.layouts import write_birdclef

    (workspace / BUNDLE).write_text(build(workspace), encoding='utf-8')
    write_birdclef(workspace / 'birdclef-2026', 2026)
    make_toy_set(workspace, clips=24, test=6)
    make_toy_soundscapes(workspace / 'scapes', recordings=8, test=1)
    for table in ('train_tp.csv', 'train_fp.csv'):
        (workspace / table).write_text((workspace / 'scapes' / table).read_text().replace('train_', 'recording_'))
    for clip in (workspace / 'scapes' / 'train').iterdir():
        clip.rename(workspace / 'train' / clip.name.replace('train_', 'recording_'))
    make_toy_set(workspace / 'task', clips=24, test=6)
    for name in ('train', 'train.csv'):
        (workspace / 'task' / name).rename(workspace / 'task' / name.replace('train', 'train_curated'))
    inputs = workspace / KAGGLE.lstrip('/')
    shutil.copytree(workspace / 'test', inputs / 'competition' / 'test')
    shutil.copy(workspace / 'sample_submission.csv', inputs / 'competition')
    (inputs / 'audiotag-kit').mkdir()
    shutil.copy(workspace / BUNDLE, inputs / 'audiotag-kit')
    recipe = find_recipe('max-pyramid-mel', small=True, overrides=['frontend.sample_rate=16000', 'network.width=4'])
    card = TaggerCard(TOY_CLASSES, frontend=recipe.frontend, network=recipe.network)
    for folder in (workspace / 'folds', inputs / 'my-folds'):
        for fold in (0, 1):
            save_tagger(folder / f'fold_{fold}.pt', build_tagger(card))
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    torch.save(nn.Sequential(*layers).state_dict(), workspace / 'my_fold_0.pth')


def make_workspace(workspace: Path) -> None:
    '''The repository as a fresh clone of it, then what it works on. Errors: SystemExit where that cannot be made'''
    shutil.copytree(ROOT, workspace, ignore=shutil.ignore_patterns(*NOT_CLONED), dirs_exist_ok=True)
    code, output = run_in_fork(lambda: fill_workspace(workspace), workspace)
    if code:
        raise SystemExit(f'the workspace cannot be made:\n{output}')


def check_page(page: Path, workspace: Path) -> int:
    '''Run what a page shows, in order, up to what fails; 1 where something does, else 0.'''
    began, steps = time.perf_counter(), list(steps_of(page.read_text(encoding='utf-8')))
    left = [step for step in steps if reason_to_skip(step)]
    for step in steps:
        place, start = f'{page.name}:{step.line}', time.perf_counter()
        if step in left:
            print(f'skipped  {place:15}  {step.shown}: {reason_to_skip(step)}')
            continue
        code, output = run_step(step, workspace)
        print(f'{time.perf_counter() - start:6.1f} s  {place:15}  {step.shown}', flush=True)
        if code:
            print(output[-6000:], f'{place}: this {step.kind} ended with {code}:\n{step.text}', sep='\n')
            print('Correct the page or the kit; what cannot run here goes to SKIPPED in tests/house/docs_check.py.')
            return 1
    spent = time.perf_counter() - began
    print(f'{page.parent.name}/{page.name}: {len(steps) - len(left)} run, {len(left)} skipped, in {spent:.0f} s')
    return 0


def main(words: list[str]) -> int:
    '''Check the repository's pages, or those given; the exit code.'''
    pages = [Path(word).resolve() for word in words] or [ROOT / name for name in PAGES]
    exec(WARM, {})
    with tempfile.TemporaryDirectory(prefix='audiotag_kit_') as folder:
        workspace = Path(folder).resolve()
        os.environ.update(HOME=str(workspace), IPYTHONDIR=str(workspace), MPLBACKEND='agg')
        make_workspace(workspace)
        return max(check_page(page, workspace) for page in pages)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
