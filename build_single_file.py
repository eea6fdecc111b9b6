'''Bundle kit/ into one file, audiotag_kit.py, or say every reason why that is not possible.

The bundle holds every file of kit/ verbatim, each after those that it imports. Only the imports from kit itself are
commented out, so a line of the bundle is a line of its file plus one constant per section.
'''

import argparse
import ast
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

BUNDLE = 'audiotag_kit.py'
ENTRY = 'kit/__main__.py'
FOLDERS = ('core', 'audio', 'labels', 'models', 'infer', 'train', 'plots')
METADATA = 'dataset-metadata.json'
BANNER = '# ==== {path}, offset {offset:+} ===='
OWN_NAMES = {'__file__', '__name__', '__doc__', '__spec__', '__package__'}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SCOPES = (*DEFINITIONS, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
ImportNode = ast.Import | ast.ImportFrom

HEADER = '''\
# audiotag-kit {version}: train audio taggers, ensemble them and submit before the deadline, from one file.
# SPDX-License-Identifier: MIT
# Copyright (c) 2026 audiotag-kit authors
# sha256 of the sources: {digest}
#
# Made from kit/ by `python build_single_file.py`: change kit/, not this file.
# Every file of kit/ is here verbatim; only its imports from kit itself are commented out.
# A line here is the line of its file plus the section's offset, which is also the line of its banner. Contents:
#
#  offset  file
'''

RUN_NAME = 'run_as_module'
RUN_CODE = '''\
# `%run audiotag_kit.py` copies every name of the file that it runs into the notebook, over the user's own. So under
# %run this file loads itself as the module `audiotag_kit`, gives the notebook the names in `__all__`, and stops here.
def run_as_module(path, notebook):
    import importlib.util
    import sys

    if getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is None:
        return  # a script: the code at the end runs the command line
    spec = importlib.util.spec_from_file_location("audiotag_kit", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["audiotag_kit"] = module  # first, as dataclasses look their module up
    spec.loader.exec_module(module)
    del notebook["run_as_module"]
    notebook.update({name: getattr(module, name) for name in module.__all__})
    module.run_command_line(path)  # SystemExit with another code than 0 makes the cell fail
    raise SystemExit(0)


if __name__ == "__main__" and "__file__" in globals():  # not where it is imported or pasted
    run_as_module(__file__, globals())
'''


class Refused(Exception):
    '''The bundle or the dataset cannot be made; the message is one line per fault.'''


@dataclass(frozen=True, eq=False)
class Source:
    '''A file of kit/: its path below the root, its text and its syntax tree.'''

    path: str
    text: str
    tree: ast.Module

    @property
    def kit_imports(self) -> list[ast.ImportFrom]:
        '''The statements at its top level that import from another kit file.'''
        return [node for node in self.tree.body if isinstance(node, ast.ImportFrom) and is_kit(node)]

    @property
    def links(self) -> list[tuple[str, str, int]]:
        '''(module, name, line) of each name that it imports from another kit file.'''
        return [(node.module or '', a.name, a.lineno) for node in self.kit_imports for a in node.names]


def parse(path: str, text: str) -> Source:
    '''Parse a file. Errors: SyntaxError'''
    return Source(path, text, ast.parse(text))


def module_name(path: str) -> str:
    '''kit/core/errors.py -> kit.core.errors'''
    return path.removesuffix('.py').replace('/', '.')


def is_kit(node: ImportNode) -> bool:
    '''Whether a statement imports the kit, or from it.'''
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or '').split('.')[0] == 'kit'
    return any(alias.name.split('.')[0] == 'kit' for alias in node.names)


def top_level_nodes(node: ast.AST) -> Iterator[ast.AST]:
    '''All nodes but those inside functions, classes and comprehensions, which have scopes of their own.'''
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, SCOPES):
            yield from top_level_nodes(child)


def definitions(source: Source) -> Iterator[tuple[str, int]]:
    '''(name, line) of each name that a file defines at its top level, under if, try, with and for too.'''
    for node in top_level_nodes(source.tree):
        if isinstance(node, DEFINITIONS):
            yield node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def foreign_imports(source: Source) -> Iterator[tuple[str, str, int]]:
    '''(name, meaning, line) of each name that a file imports at its top level from outside the kit.'''
    for node in top_level_nodes(source.tree):
        if isinstance(node, ImportNode) and not is_kit(node):
            prefix = f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''
            for alias in node.names:
                # `import os.path` binds `os`, while `import os.path as p` binds the inner module.
                target = alias.name if prefix or alias.asname else alias.name.split('.')[0]
                yield alias.asname or target, prefix + target, node.lineno


def read_kit(root: Path, faults: list[str]) -> dict[str, Source]:
    '''Read every file of kit/, by module name. Files that cannot be parsed are added to `faults`.'''
    kit: dict[str, Source] = {}
    for path in sorted((root / 'kit').rglob('*.py')):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding='utf-8')
        if path.name != '__init__.py':
            try:
                kit[module_name(name)] = parse(name, text)
            except (SyntaxError, ValueError) as error:
                faults.append(f'{name}:{getattr(error, "lineno", None) or 1}: cannot be parsed: {error}')
        elif text.strip():
            faults.append(f'{name}:1: an __init__.py must be empty: the bundle has no packages')
    return kit


def place(source: Source) -> tuple[bool, int, str]:
    '''Where a file goes if imports leave the choice: known folders, other folders, top-level files.'''
    folder = source.path.removeprefix('kit/').rpartition('/')[0]
    rank = FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)
    return folder == '', rank, source.path


def reading_order(kit: dict[str, Source]) -> list[Source]:
    '''All files, each after those that it imports. Errors: CycleError, which holds a circle of files'''
    sorter: TopologicalSorter[Source] = TopologicalSorter()
    for source in kit.values():
        sorter.add(source, *(kit[module] for module, _, _ in source.links if module in kit))
    sorter.prepare()
    order: list[Source] = []
    ready: list[Source] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


def file_faults(source: Source, kit: dict[str, Source]) -> Iterator[str]:
    '''What is wrong with one file: its imports, and its use of names that belong to the whole bundle.'''
    for node in ast.walk(source.tree):
        if isinstance(node, ImportNode):
            yield from (f'{source.path}:{node.lineno}: {x}' for x in import_faults(node, source.tree.body))
        elif isinstance(node, ast.Name) and node.id in OWN_NAMES and source.path != ENTRY:
            yield f"{source.path}:{node.lineno}: {node.id} is the whole bundle's: only {ENTRY} may use it"
    for module, name, line in source.links:
        if module not in kit:
            yield f'{source.path}:{line}: {module} is no file of the kit to import {name} from'
        elif name not in dict(definitions(kit[module])):
            yield f'{source.path}:{line}: {name} is not defined in {kit[module].path}'


def import_faults(node: ImportNode, body: Sequence[ast.stmt]) -> Iterator[str]:
    '''What is wrong with an import. One of the kit must be a plain statement that can be commented out.'''
    if any(alias.name == '*' for alias in node.names):
        yield 'a star import: name what is imported'
    elif isinstance(node, ast.ImportFrom) and node.module == '__future__':
        yield 'a __future__ import would leak into the notebook'
    elif is_kit(node):
        if isinstance(node, ast.Import) or node.level > 0:
            yield 'import names, not modules: from kit.x.y import name'
        elif any(alias.asname for alias in node.names):
            yield 'a kit name keeps its name: import it without `as`'
        elif node not in body:
            yield 'a kit import inside another statement: move it to the top of the file'
        elif any(node.lineno == s.end_lineno or node.end_lineno == s.lineno for s in body if s is not node):
            yield 'a kit import shares its line with code: give it a line of its own'


def shared_faults(kit: dict[str, Source]) -> Iterator[str]:
    '''Names that are fine in each file and wrong in one namespace; files that are not reached.'''
    sources = sorted(kit.values(), key=place)
    imported: dict[str, tuple[str, str]] = {}
    for source in sources:
        for name, meaning, line in foreign_imports(source):
            first, earlier = imported.setdefault(name, (meaning, f'{source.path}:{line}'))
            if first != meaning:
                yield f'{source.path}:{line}: {name} means {meaning} here and {first} at {earlier}'
    defined = {RUN_NAME: 'build_single_file.py:1'}
    for source in sources:
        for name, line in definitions(source):
            if name in defined:
                yield f'{source.path}:{line}: {name} is defined twice, first at {defined[name]}'
            elif name in imported:
                yield f'{source.path}:{line}: {name} shadows the import at {imported[name][1]}'
            defined.setdefault(name, f'{source.path}:{line}')
    reached = [module_name(ENTRY)]
    for module in reached:  # grows as it goes
        links = kit[module].links if module in kit else []
        reached += {link for link, _, _ in links} - {*reached}
    for source in sources:
        if module_name(source.path) not in reached:
            yield f'{source.path}:1: nobody reaches this file from {ENTRY}: import it or remove it'


def section(source: Source) -> list[str]:
    '''A file's lines, its imports from kit commented out.'''
    lines = source.text.removesuffix('\n').split('\n')
    for node in source.kit_imports:
        for index in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[index] = f'# {lines[index]}'
    return lines


def join_sections(order: Sequence[Source], version: str) -> str:
    '''The bundle: header, contents, the code for %run, and a section per file.'''
    digest = hashlib.sha256(''.join(f'{s.path}\0{s.text}\0' for s in order).encode()).hexdigest()
    head = HEADER.format(version=version, digest=digest).splitlines()
    code = ['', '', *RUN_CODE.splitlines()]
    contents: list[str] = []
    sections: list[str] = []
    for source in order:
        # The contents will have a line per file. The banner is the third line of what is added here.
        offset = len(head) + len(order) + len(code) + len(sections) + 3
        contents.append(f'# {offset:+6}  {source.path}')
        sections += ['', '', BANNER.format(path=source.path, offset=offset), *section(source)]
    return '\n'.join([*head, *contents, *code, *sections, ''])


def build(root: Path) -> str:
    '''The bundle of `root`/kit. Errors: Refused, a line per fault'''
    faults: list[str] = []
    kit = read_kit(root, faults)
    if module_name(ENTRY) not in kit:
        faults.append(f'{ENTRY}:1: the entry is missing')
    versions = [s.text for s in kit.values() if s.path == 'kit/core/runtime.py']
    version = re.search(r'^VERSION = ["\'](.+)["\']$', ''.join(versions), re.MULTILINE)
    if version is None:
        faults.append('kit/core/runtime.py:1: must hold a line such as VERSION = "0.1.0"')
    for source in kit.values():
        faults += file_faults(source, kit)
    faults += shared_faults(kit)
    try:
        order = reading_order(kit)
    except CycleError as error:
        faults.append('a circle of imports: ' + ', imported by '.join(source.path for source in error.args[1]))
    if faults or version is None:
        raise Refused('\n'.join(dict.fromkeys(faults)))
    return join_sections(order, version[1])


def write_whole(path: Path, content: bytes) -> None:
    '''Write beside `path`, then rename: a kill leaves the old file.'''
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + '.part')
    part.write_bytes(content)
    os.replace(part, path)


def check_dataset_name(name: str) -> None:
    '''Errors: Refused for a name that Kaggle would refuse'''
    _, _, slug = name.partition('/')
    pattern = r'[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9]+(-[a-z0-9]+)*'
    if not re.fullmatch(pattern, name) or not 6 <= len(slug) <= 50:
        wanted = 'OWNER/SLUG, a slug of 6 to 50 small letters and digits joined by single hyphens'
        raise Refused(f'--kaggle-dataset takes {wanted}, e.g. me/my-taggers; got {name!r}')


def find_checkpoints(patterns: Sequence[str]) -> dict[str, Path]:
    '''The files that the patterns match, by name; where two have one name, by folder and name. Errors: Refused'''
    paths: list[Path] = []
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        files = [path for path in matches if path.is_file()]
        if not files:
            raise Refused(f"no file matches {pattern!r}: e.g. --checkpoints 'run/fold_*.pt'")
        paths += [path for path in files if path not in paths]
    # A dataset is flat: run/fold_0.pt and other/fold_0.pt become run_fold_0.pt and other_fold_0.pt.
    is_unique = len({path.name for path in paths}) == len(paths)
    found = {path.name if is_unique else f'{path.absolute().parent.name}_{path.name}': path for path in paths}
    if len(found) < len(paths):
        raise Refused('two checkpoints would have one name in the dataset, which is flat: rename their folders')
    return found


def make_dataset(folder: Path, name: str, text: str, checkpoints: dict[str, Path], write: bool) -> list[str]:
    '''Write a dataset's folder and return a line per file. Errors: Refused if it holds other files already

    The metadata comes last: without it Kaggle's client refuses a folder that was left half written.
    '''
    present = [path.name for path in sorted(folder.iterdir())] if folder.exists() else []
    others = ', '.join(file for file in present if file not in (BUNDLE, METADATA, *checkpoints))
    if others:
        raise Refused(f'{folder} holds other files, which would be uploaded too; move them: {others}')
    rows: list[str] = []
    resources: list[dict[str, str]] = []
    for file in (BUNDLE, *checkpoints):
        content = checkpoints[file].read_bytes() if file in checkpoints else text.encode()
        digest = hashlib.sha256(content).hexdigest()
        kind = 'checkpoint' if file in checkpoints else 'the bundle, MIT licence'
        resources.append({'path': file, 'description': f'{kind}; sha256 {digest}'})
        rows.append(f'{len(content):>12,} bytes  sha256 {digest}  {file}')
        if write:
            write_whole(folder / file, content)
    metadata = {
        'title': name.partition('/')[2].replace('-', ' ').capitalize(),
        'subtitle': 'Train audio taggers, ensemble them and submit in time: one file',
        # Kaggle's list of licences has no MIT, and checkpoints are their maker's.
        'description': f"{BUNDLE} has the MIT licence; checkpoints (tensors and JSON) have their maker's.",
        'id': name,
        'licenses': [{'name': 'other'}],
        'resources': resources,
    }
    if write:
        write_whole(folder / METADATA, f'{json.dumps(metadata, indent=2)}\n'.encode())
    return [*rows, f'next: kaggle datasets create -p {folder}']


def run(options: argparse.Namespace, root: Path) -> list[str]:
    '''Build, check or write; returns the lines to print. Errors: Refused'''
    text = build(root)
    out = options.out or root / BUNDLE
    if options.check:
        if not out.is_file() or out.read_bytes() != text.encode():
            raise Refused(f'{out.name} differs from kit/: run python build_single_file.py')
        return []
    rows = [f'{out.name}: {len(text.encode()):,} bytes, {len(text.splitlines()):,} lines']
    if options.kaggle_dataset is not None:
        check_dataset_name(options.kaggle_dataset)
        checkpoints = find_checkpoints(options.checkpoints)
        folder = root / 'kaggle_dataset'
        rows += make_dataset(folder, options.kaggle_dataset, text, checkpoints, write=not options.dry_run)
    elif options.checkpoints:
        raise Refused('--checkpoints go into the folder of --kaggle-dataset OWNER/SLUG: name it')
    if not options.dry_run:
        write_whole(out, text.encode())
    return rows


def main() -> int:
    '''Run the command line; the exit code.'''
    parser = argparse.ArgumentParser(description=f'Bundle kit/ into one file, {BUNDLE}.')
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if it is out of date')
    parser.add_argument('--out', type=Path, metavar='PATH', help=f'the file to write (default: {BUNDLE})')
    parser.add_argument('--kaggle-dataset', metavar='OWNER/SLUG', help='also write a folder to upload')
    parser.add_argument('--checkpoints', nargs='+', action='extend', default=[], metavar='GLOB',
                        help="checkpoints for that folder, e.g. 'run/fold_*.pt'")  # fmt: skip
    parser.add_argument('--dry-run', action='store_true', help='write nothing; list what would be written')
    try:
        print(*run(parser.parse_args(), Path(__file__).resolve().parent), sep='\n')
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
