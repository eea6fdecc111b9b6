'''What every test shares: the bundle in kit's place when asked for, the real clips, the command line.'''

import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from build_single_file import BUNDLE, Refused, build, definitions, module_name, parse

ROOT = Path(__file__).resolve().parent.parent
UNDER_TEST = os.environ.get('KIT_UNDER_TEST', 'kit')
BUNDLE_FOLDER = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    '''Put the bundle in kit's place before any test imports from it; else let child processes find kit/.'''
    if UNDER_TEST not in ('kit', 'bundle'):
        raise pytest.UsageError(f'KIT_UNDER_TEST is kit or bundle, got {UNDER_TEST!r}')
    if UNDER_TEST == 'kit':
        paths = [str(ROOT), os.environ.get('PYTHONPATH')]
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    else:
        config.stash[BUNDLE_FOLDER] = tempfile.TemporaryDirectory(prefix='audiotag_kit_')
        path = Path(config.stash[BUNDLE_FOLDER].name) / BUNDLE
        try:
            path.write_text(build(ROOT), encoding='utf-8')
        except Refused as refused:
            raise pytest.UsageError(f'kit/ makes no bundle:\n{refused}') from None
        register_as_kit(import_bundle(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    '''House and build tests look at the sources, so they run once, with kit/ itself.'''
    house = [item for item in items if UNDER_TEST == 'bundle' and ROOT / 'tests' / 'house' in item.path.parents]
    if house:
        config.hook.pytest_deselected(items=house)
        items[:] = [item for item in items if item not in house]


def pytest_unconfigure(config: pytest.Config) -> None:
    '''Remove the folder that held the bundle.'''
    if BUNDLE_FOLDER in config.stash:
        config.stash[BUNDLE_FOLDER].cleanup()


def pytest_report_header() -> str:
    '''Say which of the two is tested.'''
    return f'under test: {"the bundle, registered as kit" if UNDER_TEST == "bundle" else "kit/"}'


def import_bundle(path: Path) -> ModuleType:
    '''The module `audiotag_kit` from a file.'''
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def register_as_kit(bundle: ModuleType) -> None:
    '''A small module for every file and folder of kit/, holding just that file's names, taken from the bundle.'''
    for path in sorted((ROOT / 'kit').rglob('*.py')):
        place = path.relative_to(ROOT).as_posix()
        folder = place.endswith('/__init__.py')
        module = ModuleType(module_name(place).removesuffix('.__init__'))
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=folder)
        if folder:
            module.__path__ = []
        names = dict(definitions(parse(place, path.read_text(encoding='utf-8'))))
        vars(module).update({name: getattr(bundle, name) for name in names if hasattr(bundle, name)})
        sys.modules[module.__name__] = module
    for name in sorted(name for name in sys.modules if name.startswith('kit.')):
        parent, _, child = name.rpartition('.')
        setattr(sys.modules[parent], child, sys.modules[name])


@pytest.fixture(scope='session')
def esc10() -> Path:
    '''The folder of the real clips, labels.csv in it; where it is missing the test is skipped.'''
    folder = ROOT.parent / 'shared' / 'data' / 'esc10'
    if not (folder / 'labels.csv').is_file():
        pytest.skip('the real clips of ESC-10 are not here: ../shared/data/esc10 is missing')
    return folder


@pytest.fixture(scope='session')
def kit_command(pytestconfig: pytest.Config) -> list[str]:
    '''The words that start the command line of what is tested, from any folder.'''
    if UNDER_TEST == 'bundle':
        return [sys.executable, str(Path(pytestconfig.stash[BUNDLE_FOLDER].name) / BUNDLE)]
    return [sys.executable, '-m', 'kit']
