'''The builder: a small kit in, a bundle or every reason why not out; then the real kit.'''

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from build_single_file import BANNER, Refused, build, parse
from tests.conftest import import_bundle
from tests.house.minikit import CLI, DECODE, ENTRY, ERRORS, MINI, ROOT, run_builder, write_mini

HEAVY = ['matplotlib', 'pandas', 'sklearn', 'soundfile', 'timm', 'torchaudio']
# Kaggle refuses a notebook above 1 MB. Its editor saves compact JSON, with a cell's source as one string; Jupyter
# saves indented JSON, with a string per line.
LIMIT_CELL_BYTES = 850_000
LIMIT_NOTEBOOK_BYTES = 1_000_000


# The changed or added file, what it then holds, and the line by which the builder refuses.
REFUSALS = {
    'a name defined twice': (
        'kit/cli.py', f'{CLI}\n\ndef read_wave() -> None:\n    pass\n',
        'kit/cli.py:19: read_wave is defined twice, first at kit/audio/decode.py:14',
    ),
    'a name under if, for and with defined twice': (
        'kit/core/errors.py', f'{ERRORS}\nif True:\n    for PEAK in ():\n        pass\n',
        'kit/audio/decode.py:11: PEAK is defined twice, first at kit/core/errors.py:8',
    ),
    'the name of the code for %run': (
        'kit/cli.py', f'{CLI}\n\ndef run_as_module() -> None:\n    pass\n',
        'kit/cli.py:19: run_as_module is defined twice, first at build_single_file.py:1',
    ),
    'a name that shadows an import of another file': (
        'kit/core/errors.py', f'{ERRORS}\nmath = 3\n',
        'kit/core/errors.py:7: math shadows the import at kit/audio/decode.py:3',
    ),
    'one import name with two meanings': (
        'kit/cli.py', f'from cmath import sqrt as math\n{CLI}',
        'kit/cli.py:1: math means cmath.sqrt here and math at kit/audio/decode.py:3',
    ),
    'a circle': (
        'kit/core/errors.py', f'from kit.audio.decode import PEAK\n{ERRORS}',
        'a circle of imports: kit/audio/decode.py, imported by kit/core/errors.py, imported by kit/audio/decode.py',
    ),
    'a star': ('kit/cli.py', f'from math import *\n{CLI}', 'kit/cli.py:1: a star import: name what is imported'),
    'the future': (
        'kit/cli.py', f'from __future__ import annotations\n{CLI}',
        'kit/cli.py:1: a __future__ import would leak into the notebook',
    ),
    'a kit module': (
        'kit/cli.py', f'import kit.core.errors\n{CLI}',
        'kit/cli.py:1: import names, not modules: from kit.x.y import name',
    ),
    'a relative import': (
        'kit/cli.py', f'from .core.errors import KitError\n{CLI}',
        'kit/cli.py:1: import names, not modules: from kit.x.y import name',
    ),
    'a folder': (
        'kit/cli.py', f'from kit import core\n{CLI}', 'kit/cli.py:1: kit is no file of the kit to import core from',
    ),
    'a kit name that is renamed': (
        'kit/cli.py', f'from kit.core.errors import KitError as Oops\n{CLI}',
        'kit/cli.py:1: a kit name keeps its name: import it without `as`',
    ),
    'a kit import in a function': (
        'kit/cli.py', f'{CLI}    from kit.core.errors import KitError\n',
        'kit/cli.py:17: a kit import inside another statement: move it to the top of the file',
    ),
    'a kit import that is not always made': (
        'kit/cli.py', f'{CLI}if RATE:\n    from kit.core.errors import KitError\n',
        'kit/cli.py:18: a kit import inside another statement: move it to the top of the file',
    ),
    'a kit import beside code': (
        'kit/cli.py', f'from kit.core.errors import KitError; KitError\n{CLI}',
        'kit/cli.py:1: a kit import shares its line with code: give it a line of its own',
    ),
    'a kit name that its file only imports': (
        'kit/__main__.py', ENTRY.replace('import enter', 'import VERSION, enter'),
        'kit/__main__.py:4: VERSION is not defined in kit/cli.py',
    ),
    'a file nobody reaches': (
        'kit/spare.py', 'X = 1\n',
        'kit/spare.py:1: nobody reaches this file from kit/__main__.py: import it or remove it',
    ),
    'a package with content': (
        'kit/core/__init__.py', '# hello\n',
        'kit/core/__init__.py:1: an __init__.py must be empty: the bundle has no packages',
    ),
    "a file's own name": (
        'kit/cli.py', f'{CLI}NAME = __name__\n',
        "kit/cli.py:17: __name__ is the whole bundle's: only kit/__main__.py may use it",
    ),
    'text that is no Python': (
        'kit/cli.py', 'RATE = = 1\n', 'kit/cli.py:1: cannot be parsed: invalid syntax (<unknown>, line 1)',
    ),
    'no version': (
        'kit/core/runtime.py', 'VERSION = str(1)\n',
        'kit/core/runtime.py:1: must hold a line such as VERSION = "0.1.0"',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSALS)
def test_the_builder_refuses_and_names_the_places(case: str, tmp_path: Path) -> None:
    path, text, line = REFUSALS[case]
    with pytest.raises(Refused) as caught:
        build(write_mini(tmp_path, {path: text}))
    assert line in str(caught.value).splitlines()


def test_all_faults_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    write_mini(tmp_path, {'kit/spare.py': 'from math import *\n', 'kit/more.py': 'RATE = __file__\n'})
    (tmp_path / 'kit/__main__.py').unlink()
    ran = run_builder(tmp_path)
    for fault in ('a star import', '__file__ is', 'RATE is defined twice', 'nobody reaches', 'entry is missing'):
        assert fault in ran.stderr
    assert ran.returncode == 1 and 'Traceback' not in ran.stderr
    assert not (tmp_path / 'audiotag_kit.py').exists()


def test_equal_sources_give_equal_bytes_and_others_another_digest(tmp_path: Path) -> None:
    first = build(write_mini(tmp_path / 'a'))
    windows = {name: text.replace('\n', '\r\n') for name, text in MINI.items()}
    assert build(write_mini(tmp_path / 'b', windows)) == first == build(tmp_path / 'a')
    digests = re.compile('^# sha256 of the sources: [0-9a-f]{64}$', re.MULTILINE)
    changed = build(write_mini(tmp_path / 'c', {'kit/cli.py': CLI.replace('0.1', '0.2')}))
    assert digests.findall(first) != digests.findall(changed)


def check_verbatim(text: str, root: Path) -> None:
    '''Every line of every file is in the bundle at line + offset; the contents and banners agree.'''
    lines = text.split('\n')
    contents = re.findall(r'^# +\+(\d+)  (kit/\S+)$', text, re.MULTILINE)
    files = {path.relative_to(root).as_posix() for path in (root / 'kit').rglob('*.py')}
    assert {path for _, path in contents} == {path for path in files if not path.endswith('__init__.py')}
    for offset, path in contents:
        assert lines[int(offset) - 1] == BANNER.format(path=path, offset=int(offset))
        source = parse(path, (root / path).read_text(encoding='utf-8'))
        out = {n for node in source.kit_imports for n in range(node.lineno, (node.end_lineno or 0) + 1)}
        for number, line in enumerate(source.text.removesuffix('\n').split('\n'), 1):
            wanted = f'# {line}' if number in out else line
            assert lines[number + int(offset) - 1] == wanted, f'{path}:{number}'
    assert not re.search(r'^\s*(from|import) kit\b', text, re.MULTILINE)


def test_the_bundle_is_the_kit_verbatim_in_dependency_order(tmp_path: Path) -> None:
    moved = {
        'kit/core/errors.py': 'X = 1\n',
        'kit/audio/decode.py': DECODE.replace('kit.core.errors', 'kit.zoo.errors'),
        'kit/zoo/errors.py': f'import math\n\nfrom kit.core.errors import X\n\nY = X\n{ERRORS}',
    }
    text = build(write_mini(tmp_path, moved))
    check_verbatim(text, tmp_path)
    order = re.findall(r'  (kit/\S+)$', text, re.MULTILINE)
    assert order == [
        'kit/core/errors.py', 'kit/core/runtime.py', 'kit/zoo/errors.py', 'kit/audio/decode.py', 'kit/cli.py',
        'kit/__main__.py',
    ]  # fmt: skip
    head = text.split('\n')[:3]
    assert '9.8.7' in head[0] and 'SPDX-License-Identifier: MIT' in head[1] and 'Copyright' in head[2]


def test_check_sees_any_difference(tmp_path: Path) -> None:
    bundle = write_mini(tmp_path) / 'audiotag_kit.py'
    assert run_builder(tmp_path, '--check').returncode == 1 and not bundle.exists()
    built = run_builder(tmp_path)
    assert built.returncode == 0 and f'{bundle.stat().st_size:,} bytes' in built.stdout
    assert run_builder(tmp_path, '--check').returncode == 0
    held = bundle.read_bytes()
    for change in (held.replace(b'\n', b'\r\n'), held + b'\n', b''):
        bundle.write_bytes(change)
        stale = run_builder(tmp_path, '--check')
        assert stale.returncode == 1 and 'differs from kit/' in stale.stderr


def test_a_traceback_minus_the_offset_names_the_line_in_kit(tmp_path: Path) -> None:
    run_builder(write_mini(tmp_path))
    command = [sys.executable, 'audiotag_kit.py', 'none.wav']
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    line = int(re.findall(r'line (\d+), in read_wave', ran.stderr)[-1])
    text = (tmp_path / 'audiotag_kit.py').read_text()
    offset = int(re.findall(r'\+(\d+)  kit/audio/decode.py', text)[0])
    assert 'raise KitError' in DECODE.split('\n')[line - offset - 1]


@pytest.fixture(scope='module')
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    '''The bundle of the real kit.'''
    path = tmp_path_factory.mktemp('bundle') / 'audiotag_kit.py'
    path.write_text(build(ROOT), encoding='utf-8')
    return path


def test_the_real_bundle_is_the_kit_verbatim(real_bundle: Path) -> None:
    check_verbatim(real_bundle.read_text(encoding='utf-8'), ROOT)


def test_the_real_bundle_can_be_pasted_into_a_notebook(real_bundle: Path) -> None:
    text = real_bundle.read_text(encoding='utf-8')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text)])
    assert len(json.dumps(notebook, separators=(',', ':')).encode()) < LIMIT_CELL_BYTES
    assert len(nbformat.writes(notebook).encode()) < LIMIT_NOTEBOOK_BYTES
    assert not any(mark in line for line in text.splitlines()[:2] for mark in ('>>>', 'In ['))


def test_a_star_import_brings_the_public_names(real_bundle: Path) -> None:
    module = import_bundle(real_bundle)
    assert {'submit', 'train_run', 'FrontendConfig', 'KitError'} <= {*module.__all__}
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len({*module.__all__}) == len(module.__all__)


def test_importing_the_bundle_does_nothing_that_shows(real_bundle: Path) -> None:
    code = f'''
import os, sys, threading, torch
before, threads, known = torch.get_rng_state(), threading.active_count(), dict(os.environ)
settings = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.cudnn.benchmark
import audiotag_kit
assert torch.equal(before, torch.get_rng_state()), "it moved torch's random state"
assert settings == (
    torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.cudnn.benchmark
), "it changed torch's settings"
assert not torch.cuda.is_initialized(), "it touched the GPU"
assert threads == threading.active_count() and known == dict(os.environ)
assert not (heavy := [name for name in {HEAVY} if name in sys.modules]), heavy
'''
    command = [sys.executable, '-c', code]
    run = subprocess.run(command, cwd=real_bundle.parent, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')
