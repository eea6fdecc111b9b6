'''The documentation pages agree with the kit: options, make targets and files exist.

`make docs-check` runs their commands.
'''

import re
import subprocess
import sys
from pathlib import Path

import pytest

from build_single_file import parse
from kit.cli import build_parser
from kit.commands import COMMANDS
from kit.core.runtime import VERSION
from tests.house.docs_check import PAGES, SKIPPED, check_page, reason_to_skip
from tests.house.minikit import ROOT, write_mini
from tests.house.readme_steps import Step, add_parts, parts_of, steps_of, with_part

README = (ROOT / 'README.md').read_text(encoding='utf-8')
TEXTS = [(ROOT / page).read_text(encoding='utf-8') for page in PAGES]
STEPS = [step for text in TEXTS for step in steps_of(text)]
ADDITIONS = [step for step in STEPS if step.kind == 'addition']

SMALL = '''# Title

    ls -a && \\
      pwd                  # a remark

A picture:

    kit/
      core/    a picture

Text, and `code` in it.

```mermaid
flowchart
```

    %run audiotag_kit.py
    submit()

```python
print(1)
```

```python
# kit/core/errors.py
X = 1

# kit/cli.py, above enter
Y = 2
```

    first
    # nothing but a remark
    second
'''


def test_every_block_is_a_command_a_cell_a_script_or_an_addition() -> None:
    found = [(step.line, step.kind, step.shown) for step in steps_of(SMALL)]
    assert found == [
        (3, 'command', 'ls -a && \\'),
        (17, 'cell', '%run audiotag_kit.py'),
        (21, 'script', 'print(1)'),
        (25, 'addition', '# kit/core/errors.py'),
        (32, 'command', 'first'),
        (34, 'command', 'second'),
    ]
    assert {'command', 'cell', 'script', 'addition'} == {step.kind for step in STEPS}


@pytest.mark.parametrize('begin', SKIPPED)
def test_what_is_skipped_is_in_a_page(begin: str) -> None:
    assert any(step.text.startswith(begin) for step in STEPS), f'{begin!r} is gone: remove it from SKIPPED'


def test_a_command_that_fails_or_is_not_there_fails_the_check(tmp_path: Path) -> None:
    readme = tmp_path / 'README.md'
    for line, code in (('true', 0), ('no_such_command --at-all', 1), ('make demo', 0), ('python none.py', 1)):
        readme.write_text(f'Text.\n\n    echo begun > begun\n    {line}\n')
        script = f'from pathlib import Path; from {check_page.__module__} import check_page; '
        script += f'raise SystemExit(check_page(Path({str(readme)!r}), Path({str(tmp_path)!r})))'
        ran = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode == code and (tmp_path / 'begun').exists(), ran.stdout
        assert not code or 'README.md:4: this command ended with' in ran.stdout


def test_only_commands_are_left_out() -> None:
    assert reason_to_skip(Step(1, 'command', 'make demo # x')) and not reason_to_skip(Step(1, 'cell', 'make demo'))


def test_an_addition_goes_where_it_says(tmp_path: Path) -> None:
    old = 'import re\n\nT = {"a": 1}\nU = (\n    2,\n)\n\n\ndef f():\n    pass\n'
    assert with_part(old, '"b": 2,', 'in', 'T').split('\n')[2:5] == ['T = {"a": 1,', '    "b": 2,', '}']
    assert with_part(old, '3,', 'in', 'U').split('\n')[3:7] == ['U = (', '    2,', '    3,', ')']
    assert with_part(old, 'import os\n\nX = 1', 'above', 'U').split('\n')[:5] == [
        'import re',
        'import os',
        '',
        'T = {"a": 1}',
        'X = 1',
    ]
    assert with_part(old, 'X = 1', '', '').endswith('    pass\n\n\nX = 1\n')
    with pytest.raises(StopIteration):
        with_part(old, 'X = 1', 'above', 'Nothing')
    write_mini(tmp_path)
    add_parts('# kit/core/new.py\nX = 1\n\n# kit/core/errors.py\nZ = 2\n', tmp_path)
    assert (tmp_path / 'kit/core/new.py').read_text() == 'X = 1\n'
    assert (tmp_path / 'kit/core/errors.py').read_text().endswith('Z = 2\n')


@pytest.mark.parametrize('step', ADDITIONS, ids=[step.shown for step in ADDITIONS])
def test_an_addition_keeps_the_rules_for_files_of_kit(step: Step) -> None:
    for path, where, _, code in parts_of(step.text):
        assert (ROOT / path).is_file() or not where, f'{path} is new, so nothing can go `{where}` a part of it'
        if path.startswith('kit/') and where != 'in':
            assert len(parse(path, code).text.split('\n')) <= 40 and "'''" in code


def test_every_option_that_a_page_names_exists() -> None:
    known = {'--kaggle-dataset', '--checkpoints', '--dry-run', '--check', '--out', '--short', '--nproc-per-node'}
    for name, command in COMMANDS.items():
        known |= {flag for action in build_parser(name, command)._actions for flag in action.option_strings}
    for option in sorted({*re.findall(r'(?<![\w-])--[a-z][a-z-]+', '\n'.join(TEXTS))}):
        assert option in known, f'a page names {option}, which no verb and no builder has'


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = {*re.findall(r'^([a-z][a-z0-9 -]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE)}
    named = {
        *re.findall(
            r'\bmake ([a-z][a-z0-9-]+)', '\n'.join(re.findall(r'`[^`]+`|^    .*$', '\n'.join(TEXTS), re.MULTILINE))
        )
    }
    assert named and named <= {name for line in targets for name in line.split()}


def test_the_layout_names_every_file_of_kit() -> None:
    layout = TEXTS[1].partition('    kit/\n')[2].partition('\n\n')[0]
    files = {path.stem for path in (ROOT / 'kit').rglob('*.py')} - {'__init__'}
    folders = {path.name for path in (ROOT / 'kit').iterdir() if path.is_dir()} - {'__pycache__'}
    assert {*layout.replace('/', '').split()} == files | folders


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 220


def test_changelog_and_citation_name_this_version() -> None:
    assert f'version = {{{VERSION}}}' in README
    assert README.partition('## Changelog\n\n')[2].startswith(f'**{VERSION}**')
