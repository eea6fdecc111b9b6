'''The bundle where it is used: a real Jupyter kernel, run twice, pasted, imported; and as a script.'''

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from build_single_file import build
from tests.house.kernels import failure, printed, run_cells
from tests.house.minikit import ROOT

Cells = dict[str, Any]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    '''A folder with the bundle and two clips.'''
    path = tmp_path_factory.mktemp('notebook')
    (path / 'audiotag_kit.py').write_text(build(ROOT), encoding='utf-8')
    (path / 'clips').mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).normal(0, 0.1, 16000)
        soundfile.write(path / 'clips' / f'{seed}.wav', noise, 16000)
    return path


def script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    '''The bundle as a script.'''
    command = [sys.executable, 'audiotag_kit.py', *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


PICKLE = 'import pickle; print(pickle.loads(pickle.dumps(FrontendConfig())) == FrontendConfig())'
# With a deadline the work is done by a child that runs the bundle again.
SUBMIT = '''
system = RECIPES["skip-attention"].override(["network.width=8"])
card = TaggerCard(classes=("bark", "meow"), frontend=system.frontend, network=system.network)
save_tagger(NAME + ".pt", build_tagger(card))
submit(NAME + ".pt", audio="clips", out=NAME + ".csv", deadline="60s", progress=False)
print(len(open(NAME + ".csv").readlines()))
'''

RUN = {
    'before': "NAME = 'run'; Path = parse = KitError = 'mine'; before = {*globals()}",
    'run': '%run audiotag_kit.py',
    'names': '''import audiotag_kit, sys
new = {name for name in {*globals()} - before if not name.startswith("_")}
print(new - {"audiotag_kit", "sys", "before"} == {*audiotag_kit.__all__} - {"KitError"}, Path, parse)
print({KitError, submit, train_run} == {audiotag_kit.KitError, audiotag_kit.submit, audiotag_kit.train_run})
first = FrontendConfig''',
    'again': '%run audiotag_kit.py',
    'new': "print(first is not FrontendConfig is sys.modules['audiotag_kit'].FrontendConfig, submit.__module__)",
    'pickle': PICKLE,
    'submit': SUBMIT,
    'recipes': '%run audiotag_kit.py recipes',
    'nonsense': '%run audiotag_kit.py nonsense',
    'alive': 'print(callable(submit), __name__)',
}
PASTE = {
    'before': "NAME = 'paste'",
    'paste': '',
    'names': 'print(submit.__module__, callable(train_run), callable(enter))',
    'pickle': PICKLE,
    'submit': SUBMIT,
    'import': 'import audiotag_kit; from audiotag_kit import *',
    'imported': 'print(submit is audiotag_kit.submit, COMMANDS is not audiotag_kit.COMMANDS)',
}


@pytest.fixture(scope='module')
def ran(folder: Path) -> Cells:
    '''The cells of a notebook that runs the bundle by %run.'''
    with pytest.MonkeyPatch.context() as patch:
        return dict(zip(RUN, run_cells(folder, list(RUN.values()), patch), strict=True))


@pytest.fixture(scope='module')
def pasted(folder: Path) -> Cells:
    '''The cells of a notebook into which the bundle was pasted, and which then imports it too.'''
    cells = PASTE | {'paste': (folder / 'audiotag_kit.py').read_text(encoding='utf-8')}
    with pytest.MonkeyPatch.context() as patch:
        return dict(zip(cells, run_cells(folder, list(cells.values()), patch), strict=True))


def test_run_brings_the_public_names_alone_and_overwrites_nothing_else(ran: Cells) -> None:
    assert printed(ran['names']) == 'True mine mine\nTrue\n'


def test_run_twice_brings_the_new_modules_names(ran: Cells) -> None:
    assert printed(ran['new']) == 'True audiotag_kit\n'


@pytest.mark.parametrize('cell', ['run', 'again', 'paste'])
def test_without_words_one_line_is_printed(ran: Cells, pasted: Cells, cell: str) -> None:
    done = (pasted if cell == 'paste' else ran)[cell]
    assert failure(done) == '' and printed(done, 'stderr') == ''
    assert len(printed(done).splitlines()) == 1 and 'submit' in printed(done)


def test_run_with_a_verb_does_it(ran: Cells) -> None:
    assert failure(ran['recipes']) == ''
    assert len(printed(ran['recipes']).splitlines()) > 1


def test_a_wrong_verb_fails_its_cell_with_a_sentence_and_the_kernel_lives(ran: Cells) -> None:
    assert 'nonsense' in printed(ran['nonsense'], 'stderr')
    assert 'Traceback' not in printed(ran['nonsense'], 'stderr')
    assert failure(ran['nonsense']) == 'SystemExit: 2'
    assert printed(ran['alive']) == 'True __main__\n'


def test_a_pasted_bundle_has_all_its_names_and_can_be_imported_beside_itself(pasted: Cells) -> None:
    assert printed(pasted['names']) == '__main__ True True\n'
    assert failure(pasted['import']) == '' and printed(pasted['import']) == ''
    assert printed(pasted['imported']) == 'True True\n'


def test_records_are_pickled_and_a_deadline_is_kept_in_both(ran: Cells, pasted: Cells) -> None:
    for cells in (ran, pasted):
        assert printed(cells['pickle']) == 'True\n'
        assert failure(cells['submit']) == '' and printed(cells['submit']).endswith('3\n')


def test_a_script_exits_with_0_or_with_2_and_one_line(folder: Path) -> None:
    good, bad = script(folder, 'recipes'), script(folder, 'nonsense')
    assert (good.returncode, good.stderr) == (0, '') and good.stdout
    assert (bad.returncode, bad.stdout) == (2, '')
    assert len(bad.stderr.splitlines()) == 1 and 'nonsense' in bad.stderr
    command = [sys.executable, '-m', 'kit', 'recipes']
    package = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert package.returncode == 0 and package.stdout == good.stdout
