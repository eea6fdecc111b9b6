'''Notebooks: their form in git, and a quick run of each on toy data, beside nothing but the bundle.

Those of BirdCLEF make no toy data: they run on a tiny folder of BirdCLEF 2026.
'''

import ast
import csv
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest

from build_single_file import build
from tests.behaviour.layouts import write_birdclef
from tests.house.kernels import failure, offer_kernel, printed, run_notebook
from tests.house.minikit import ROOT

FOLDER = ROOT / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*/*.ipynb'))
BIRDCLEF = 'birdclef-2026'
COMPETITIONS = ('freesound-audio-tagging-2019', 'rfcx-species-audio-detection', BIRDCLEF)
EVERY_NOTEBOOK = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
Runs = dict[Path, 'Future[list[Any]]']


def read(path: Path) -> Any:
    '''Read a notebook.'''
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: Any) -> list[str]:
    '''Return the text of each code cell.'''
    return [cell.source for cell in notebook.cells if cell.cell_type == 'code']


def is_birdclef(path: Path) -> bool:
    '''Whether a notebook reads BirdCLEF's folder.'''
    return path.stem.startswith('birdclef-')


def settings_in(code: str) -> set[str]:
    '''Return the names in capitals to which a cell assigns.'''
    tree = ast.parse(re.sub('^%.*$', '', code, flags=re.MULTILINE))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, ast.Store) and node.id.isupper()}


@EVERY_NOTEBOOK
def test_a_notebook_is_in_git_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == 'python3'
    for cell in notebook.cells:
        assert cell.metadata == {}, cell.id
        assert re.fullmatch('[a-z-]+', cell.id), cell.id
        if cell.cell_type == 'code':
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@EVERY_NOTEBOOK
def test_a_notebook_is_short_starts_with_the_bundle_and_has_its_settings_in_one_cell(path: Path) -> None:
    notebook = read(path)
    title = notebook.cells[0]
    assert 8 <= len(notebook.cells) <= 14
    assert title.cell_type == 'markdown'
    assert 'minutes on two' in title.source
    assert 'not yet measured' in title.source
    first, *others = code_cells(notebook)
    assert re.search('^%run', first, re.MULTILINE)
    assert not any('%run' in code for code in others)
    (settings,) = [names for names in map(settings_in, [first, *others]) if names]
    assert settings >= {'QUICK', 'OUT'}


@EVERY_NOTEBOOK
def test_a_notebook_searches_all_of_kaggles_input_only_through_the_kit(path: Path) -> None:
    code = '\n'.join(code_cells(read(path)))
    search = r'(read_competition|find_competition)\(DATA\b' if is_birdclef(path) else r'find_data\(.*, inputs=DATA\)$'
    assert "DATA = os.environ.get('AUDIOTAG_KIT_DATA', '/kaggle/input')" in code
    assert code.count("'/kaggle/input'") == 1
    assert re.search(search, code, re.MULTILINE)
    assert len(re.findall(r'\bDATA\b', code)) == 2
    assert not re.search(r'rglob|os\.walk|\*\*/', code)


@EVERY_NOTEBOOK
def test_a_notebook_can_be_pushed_to_kaggle_offline(path: Path) -> None:
    metadata = json.loads((path.parent / 'kernel-metadata.json').read_text(encoding='utf-8'))
    slug = f'audiotag-kit-{path.stem}'
    assert path.parent.name == path.stem
    assert metadata['id'] == f'OWNER/{slug}'
    # Kaggle makes another kernel if the title does not lead to the slug.
    assert re.sub('[^a-z0-9]+', '-', metadata['title'].lower()) == slug
    assert metadata['code_file'] == path.name
    assert metadata['language'] == 'python'
    assert metadata['kernel_type'] == 'notebook'
    assert metadata['enable_internet'] is False
    assert metadata['is_private'] is True
    assert metadata['enable_gpu'] is ('train' in path.stem)
    assert metadata['dataset_sources'] == ['OWNER/audiotag-kit']
    assert metadata['kernel_sources'] == []
    (competition,) = metadata['competition_sources']
    assert competition in COMPETITIONS
    assert (competition == BIRDCLEF) == is_birdclef(path)


def test_pictures_are_small_and_shown_in_the_readme() -> None:
    pictures = sorted((FOLDER / 'images').glob('*'))
    readme = (FOLDER / 'README.md').read_text(encoding='utf-8')
    assert {f'images/{path.name}' for path in pictures} == set(re.findall(r'images/[\w.-]+', readme))
    sizes = {path.name: path.stat().st_size for path in pictures}
    assert [name for name, size in sizes.items() if size > 60_000] == []
    assert sum(sizes.values()) < 400_000


@pytest.fixture(scope='module')
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    '''Run the selected notebooks, two at a time, each in a folder with nothing but the bundle.

    The folder where notebooks search for data is empty, so that toy data are made on every machine. Those of BirdCLEF
    get a tiny competition; `birdclef-submit` one without test audio, as when a notebook is saved on Kaggle.
    '''
    home = tmp_path_factory.mktemp('notebooks')
    inputs = tmp_path_factory.mktemp('inputs')
    bundle = build(ROOT)
    items = [item for item in request.session.items if item.path == request.path]
    users = [item for item in items if 'runs' in getattr(item, 'fixturenames', ())]
    paths = dict.fromkeys(item.callspec.params['path'] for item in users)  # type: ignore[attr-defined]

    def run(path: Path) -> list[Any]:
        folder = home / path.stem
        folder.mkdir()
        (folder / 'audiotag_kit.py').write_text(bundle, encoding='utf-8')
        place = inputs / path.stem
        place.mkdir()
        if is_birdclef(path):
            write_birdclef(place / BIRDCLEF, 2026, test=0 if path.stem == 'birdclef-submit' else 2)
        env = {'AUDIOTAG_KIT_QUICK': '1', 'AUDIOTAG_KIT_DATA': str(place), 'OMP_NUM_THREADS': '1'}
        return [folder, place, *run_notebook(read(path), folder, env)]

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        offer_kernel(home / 'jupyter', patch)
        yield {path: pool.submit(run, path) for path in paths}


@EVERY_NOTEBOOK
def test_a_notebook_runs_beside_nothing_but_the_bundle(path: Path, runs: Runs) -> None:
    folder, place, *cells = runs[path].result()
    code = [cell for cell in cells if cell.cell_type == 'code']
    assert [f'{cell.id}: {failure(cell)}' for cell in code if failure(cell)] == []
    for cell in code:
        images = [output for output in cell.outputs if 'image/png' in output.get('data', {})]
        assert len(images) == len(re.findall(r'(?m)\bdraw_\w+\(|^plt\.show\(', cell.source)), cell.id
    end = printed(code[-1])
    saved = re.findall('^saved (.+)$', end, re.MULTILINE)
    assert saved
    assert [name for name in saved if not (folder / name).exists()] == []
    if path.stem == 'look-at-data':
        assert 'submission.csv' not in saved
    else:
        assert 'submission.csv' in saved
        assert 'The submission needs audiotag_kit.py and' in end
        (data,) = place.glob(BIRDCLEF) if is_birdclef(path) else folder.glob('data/toy_*')
        ids = window_ids(data / 'test_soundscapes')
        check_submission(folder / 'submission.csv', data / 'sample_submission.csv', ids)
    if path.stem == 'birdclef-submit':
        rehearsed = window_ids(data / 'train_soundscapes')
        check_submission(folder / 'submission_rehearsal.csv', data / 'sample_submission.csv', rehearsed)
        assert '600 such files would take' in ''.join(map(printed, code))


def window_ids(soundscapes: Path) -> list[str]:
    '''Return the ids of rows of five seconds in each soundscape of `write_birdclef`, which last 15 s.'''
    return [f'{path.stem}_{end}' for path in sorted(soundscapes.glob('*.ogg')) for end in (5, 10, 15)]


def check_submission(path: Path, template_path: Path, ids: list[str]) -> None:
    '''Assert that a CSV has the template's columns, these rows or else its own, and a probability in each cell.'''
    template = list(csv.reader(template_path.open(encoding='utf-8')))
    rows = list(csv.reader(path.open(encoding='utf-8')))
    assert rows[0] == template[0]
    assert [row[0] for row in rows[1:]] == (ids or [row[0] for row in template[1:]])
    probabilities = [float(cell) for row in rows[1:] for cell in row[1:]]
    assert all(math.isfinite(p) and 0 <= p <= 1 for p in probabilities)
