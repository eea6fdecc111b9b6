'''The folder for Kaggle: a bundle and checkpoints in, what its client accepts out, or one line that says why not.'''

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from build_single_file import METADATA, Refused, check_dataset_name
from tests.house.minikit import run_builder, write_mini

NAME = 'some-one/audiotag-kit'


def build_dataset(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    '''The builder of the small kit, asked for a dataset.'''
    return run_builder(root, '--kaggle-dataset', NAME, *words)


def files_below(root: Path) -> dict[str, bytes]:
    '''Every file below a folder with what it holds, Python's caches apart.'''
    paths = (path for path in sorted(root.rglob('*')) if path.is_file() and '__pycache__' not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    '''The small kit beside two runs, of which a file each has the same name.'''
    write_mini(tmp_path)
    for path in ('run/fold_0.pt', 'run/fold_1.pt', 'other/fold_0.pt', 'deep/run/fold_0.pt'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode() * 100)
    return tmp_path


def test_the_folder_holds_the_bundle_the_checkpoints_and_kaggles_metadata(root: Path) -> None:
    ran = build_dataset(root, '--checkpoints', 'run/*.pt', 'run/fold_0.pt')
    assert (ran.returncode, ran.stderr) == (0, '')
    folder = files_below(root / 'kaggle_dataset')
    metadata = json.loads(folder.pop(METADATA))
    assert sorted(folder) == ['audiotag_kit.py', 'fold_0.pt', 'fold_1.pt']
    assert folder['audiotag_kit.py'] == (root / 'audiotag_kit.py').read_bytes()
    assert folder['fold_0.pt'] == (root / 'run' / 'fold_0.pt').read_bytes()
    described = {resource['path']: resource['description'] for resource in metadata['resources']}
    for name, content in folder.items():
        digest = hashlib.sha256(content).hexdigest()
        assert digest in described.pop(name)
        assert any({f'{len(content):,}', digest, name} <= {*line.split()} for line in ran.stdout.splitlines())
    assert not described and 'kaggle datasets create -p ' in ran.stdout
    # The lengths and the licence that Kaggle's client documents.
    assert metadata['id'] == NAME and metadata['licenses'] == [{'name': 'other'}]
    assert 6 <= len(metadata['title']) <= 50 and 20 <= len(metadata['subtitle']) <= 80
    assert 'MIT licence' in metadata['description']


def test_a_dry_run_lists_the_same_and_writes_nothing(root: Path) -> None:
    before = files_below(root)
    dry = build_dataset(root, '--checkpoints', 'run/*.pt', '--dry-run')
    assert dry.returncode == 0 and files_below(root) == before
    assert build_dataset(root, '--checkpoints', 'run/*.pt').stdout == dry.stdout


def test_checkpoints_of_two_runs_are_named_by_their_folders(root: Path) -> None:
    assert build_dataset(root, '--checkpoints', 'run/*.pt', 'other/*.pt').returncode == 0
    names = {'run_fold_0.pt', 'run_fold_1.pt', 'other_fold_0.pt'}
    assert names < {*files_below(root / 'kaggle_dataset')}


REFUSALS = {
    'a pattern that matches nothing': (['--checkpoints', 'run/none*.pt'], "no file matches 'run/none*.pt'"),
    'two checkpoints of one name': (
        ['--checkpoints', 'run/*.pt', 'deep/run/*.pt'],
        'two checkpoints would have one name',
    ),
    'a name that Kaggle refuses': (['--kaggle-dataset', 'me/short'], 'OWNER/SLUG'),
    'an empty name': (['--kaggle-dataset', ''], 'OWNER/SLUG'),
    'a folder with other files': (['--checkpoints', 'run/fold_1.pt'], 'uploaded too; move them: fold_0.pt'),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_what_cannot_be_uploaded_is_one_line_and_writes_nothing(case: str, root: Path) -> None:
    words, line = REFUSALS[case]
    build_dataset(root, '--checkpoints', 'run/fold_0.pt')
    before = files_below(root)
    ran = build_dataset(root, *words)
    assert ran.returncode == 1 and line in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert files_below(root) == before


def test_checkpoints_without_a_dataset_are_refused(root: Path) -> None:
    ran = run_builder(root, '--checkpoints', 'run/*.pt')
    assert ran.returncode == 1 and '--kaggle-dataset' in ran.stderr
    assert not (root / 'audiotag_kit.py').exists()


@pytest.mark.parametrize(
    'name', ['noslug', '/audiotag-kit', 'a/b/c', 'me/Audio-Kit', 'me/audio--kit', 'me/' + 'x' * 51]
)
def test_a_name_that_kaggle_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(Refused, match='OWNER/SLUG'):
        check_dataset_name(name)
