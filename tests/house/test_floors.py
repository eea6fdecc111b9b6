'''The house of kit/: who may import whom, what may stand at the top level, and how long a file may be.'''

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from build_single_file import ENTRY, Source, foreign_imports, module_name, parse, reading_order, top_level_nodes

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {'core': 0, 'audio': 1, 'labels': 1, 'models': 2, 'infer': 3, 'train': 4, 'plots': 5}
TOP_LEVEL, COMMAND_LINE, ENTRY_LEVEL = 6, 7, 8
HEAVY = {'IPython', 'librosa', 'matplotlib', 'onnxruntime', 'openvino', 'pandas', 'scipy', 'sklearn', 'soundfile'}
HEAVY |= {'timm', 'torchaudio', 'torchcodec', 'torchvision', 'tqdm'}
EFFECTS = (ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Delete, ast.AugAssign, ast.Assert)
LONGEST_FILE = 400

SOURCES = [
    parse(path.relative_to(ROOT).as_posix(), path.read_text(encoding='utf-8'))
    for path in sorted((ROOT / 'kit').rglob('*.py'))
    if path.name != '__init__.py'
]
EVERY_FILE = pytest.mark.parametrize('source', SOURCES, ids=[source.path for source in SOURCES])


def home(path: str) -> tuple[int, str]:
    '''The floor and the folder of a kit file.'''
    folder, _, name = path.removeprefix('kit/').rpartition('/')
    if folder:
        return FLOORS[folder], folder
    if path == ENTRY:
        return ENTRY_LEVEL, folder
    return COMMAND_LINE if name in ('cli.py', 'commands.py') else TOP_LEVEL, folder


def calls_at_import(source: Source) -> Iterator[tuple[ast.Call, str]]:
    '''Each call that importing the file makes, decorators aside, with the name at its root.'''
    bodies = [source.tree, *(node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))]
    for node in (node for body in bodies for node in top_level_nodes(body) if isinstance(node, ast.Call)):
        root = node.func
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        if isinstance(root, ast.Name):
            yield node, root.id


@EVERY_FILE
def test_a_file_imports_only_from_lower_floors_or_its_own_folder(source: Source) -> None:
    floor, folder = home(source.path)
    for module, name, line in source.links:
        floor_there, folder_there = home(module.replace('.', '/') + '.py')
        same = (floor_there, folder_there) == (floor, folder) and floor < ENTRY_LEVEL
        assert floor_there < floor or same, f'{source.path}:{line} takes {name} from {module}, not below it'


def test_imports_go_in_no_circle() -> None:
    kit = {module_name(source.path): source for source in SOURCES}
    assert len(reading_order(kit)) == len(kit)


@EVERY_FILE
def test_a_file_is_short_enough_to_read(source: Source) -> None:
    assert source.text.count('\n') <= LONGEST_FILE


@EVERY_FILE
def test_a_file_and_its_public_names_say_what_they_are(source: Source) -> None:
    assert ast.get_docstring(source.tree), f'{source.path}: its first line must say what goes in and what comes out'
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
            assert ast.get_docstring(node), f'{source.path}:{node.lineno}: {node.name} has no docstring'


@EVERY_FILE
def test_heavy_libraries_load_where_they_are_used(source: Source) -> None:
    for name, meaning, line in foreign_imports(source):
        heavy = meaning.partition('.')[0] in HEAVY
        assert not heavy, f'{source.path}:{line}: import {name} in the function that uses it'


@EVERY_FILE
def test_nothing_happens_at_import(source: Source) -> None:
    if source.path != ENTRY:
        has_docstring = ast.get_docstring(source.tree) is not None
        for statement in source.tree.body[has_docstring:]:
            assert not isinstance(statement, EFFECTS), f'{source.path}:{statement.lineno} runs at import'
    modules = {name for name, _, _ in foreign_imports(source)}
    modules -= {'Path', 'TypeVar', 'dataclass', 'dataclasses', 'field', 'namedtuple', 're', 'types', 'typing'}
    for call, root in calls_at_import(source):
        assert root not in {*modules, 'print', 'open', 'input', 'exec', 'eval', '__import__'}, (
            f'{source.path}:{call.lineno}: {ast.unparse(call)} runs at import'
        )


@EVERY_FILE
def test_no_function_rebinds_a_global(source: Source) -> None:
    for node in ast.walk(source.tree):
        assert not isinstance(node, ast.Global), f'{source.path}:{node.lineno}: global {node.names}'


@pytest.mark.skipif(not SOURCES, reason='kit/ holds no file yet')
def test_every_file_can_be_imported_alone_and_says_nothing() -> None:
    names = [module_name(source.path) for source in SOURCES]
    run = subprocess.run(
        [sys.executable, '-c', f'import importlib\nfor name in {names}: importlib.import_module(name)'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')
