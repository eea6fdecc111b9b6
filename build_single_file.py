"""kit/ in, audiotag_kit.py out: one file to read, upload, paste or import, or every reason why not."""

import argparse
import ast
import builtins
import contextlib
import glob
import hashlib
import json
import os
import pickletools
import re
import shutil
import symtable
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

BUNDLE = "audiotag_kit.py"
ENTRIES = {"": "kit/__main__.py"}
DOORS = ("kit.commands", "kit.parts")
FLOORS = ("core", "audio", "labels", "models", "infer", "train", "plots")
LIMIT_BYTES = 500_000
FROZEN, SHORT_FROZEN = "@dataclass(frozen=True)", "@frozen"  # a kilobyte shorter where it stands everywhere
METADATA = "dataset-metadata.json"
# What Kaggle documents of a dataset; these limits have grown before, so more is said, not refused.
LIMIT_FILES, LIMIT_GB = 50, 200
# What the pickle of a checkpoint may name: torch's own way of putting tensors together.
OF_TENSORS = re.compile(
    r"torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)|collections OrderedDict"
)
WIDTH = 110
FOR_TOOLS = re.compile(r"  # (fmt: skip|type: ignore\[[\w, -]+\])$")
LATER_SENTENCES = re.compile(r"(?<=\.) (?=[A-Z])")
GENERATED = ("BUNDLE_SECTIONS", "where", "frozen")
DUNDERS = {"__name__", "__file__", "__doc__", "__spec__", "__package__", "__loader__"}
IN_CLASSES = {"__module__", "__qualname__", "__class__", "__classdict__", "__annotations__"}
IN_CLASSES |= {"__annotate__", "__conditional_annotations__"}  # from Python 3.14 on
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SCOPES = (*FUNCTIONS, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
ImportNode = ast.Import | ast.ImportFrom
Kit = dict[str, "Source"]


class Refused(Exception):
    """The kit cannot be flattened; the message is one line per fault."""


@dataclass(frozen=True, eq=False)
class Source:
    """A file of kit/: its path below the root, its text, the imports at its top, and the code below them."""

    path: str
    text: str
    tree: ast.Module
    imports: list[ImportNode]
    code: list[ast.stmt]
    body_line: int

    @property
    def docstring(self) -> list[str]:
        """The lines of its docstring."""
        return (ast.get_docstring(self.tree) or "").split("\n")

    @property
    def links(self) -> list[tuple[str, str, int]]:
        """(module, name, line) of each name that it takes from another kit file."""
        nodes = [node for node in self.imports if isinstance(node, ast.ImportFrom) and not node.level]
        return [
            (node.module or "", alias.name, alias.lineno)
            for node in nodes
            if is_kit(node)
            for alias in node.names
        ]


def parse(path: str, text: str) -> Source:
    """Split a file into imports and code. Its body begins at the first line with text below the imports."""
    tree = ast.parse(text)
    statements = tree.body[ast.get_docstring(tree) is not None :]
    imports = [node for node in takewhile(is_import, statements) if isinstance(node, ImportNode)]
    code = statements[len(imports) :]
    head = tree.body[: len(tree.body) - len(code)]
    end = (head[-1].end_lineno or 0) if head else 0
    blank = takewhile(lambda line: not line.strip(), text.split("\n")[end:])
    return Source(path, text, tree, imports, code, end + len(list(blank)) + 1)


def module_name(path: str) -> str:
    """kit/sound/decode.py -> kit.sound.decode"""
    return path.removesuffix(".py").replace("/", ".")


def is_import(node: ast.AST) -> bool:
    """True for both forms of the import statement."""
    return isinstance(node, ImportNode)


def is_kit(node: ImportNode) -> bool:
    """True for an import of, or from, the kit itself."""
    modules = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        modules = ["kit" if node.level else node.module or ""]
    return any(module.partition(".")[0] == "kit" for module in modules)


def meanings(node: ImportNode) -> Iterator[tuple[str, str]]:
    """Each name that an import binds, with what the name then means."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        else:
            top = alias.name.partition(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, top)


def own_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that act at the top level: what functions, classes and comprehensions hold is their own."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, SCOPES):
            yield from own_scope(child)


def definitions(source: Source) -> Iterator[tuple[str, int]]:
    """Each name bound at the top level, with its line: under if, try, with, for or match too. Not imports."""
    for node in own_scope(source.tree):
        if isinstance(node, (*FUNCTIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            if node.name:
                yield node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def read_kit(root: Path, faults: list[str]) -> Kit:
    """Every file of kit/ by module name, in sorted order; files that cannot be parsed become faults."""
    kit: Kit = {}
    for name in sorted(path.relative_to(root).as_posix() for path in (root / "kit").rglob("*.py")):
        try:
            source = parse(name, (root / name).read_bytes().decode("utf-8").replace("\r\n", "\n"))
        except (SyntaxError, ValueError) as error:
            faults.append(f"{name}:{getattr(error, 'lineno', None) or 1}: cannot be parsed: {error}")
            continue
        if not name.endswith("__init__.py"):
            kit[module_name(name)] = source
        elif source.text.strip():
            faults.append(f"{name}:1: an __init__.py must be empty: the bundle has no packages")
    return kit


def reading_order(kit: Kit) -> tuple[list[Source], list[str]]:
    """All files, each after those that it imports, folder by folder; and the circles met."""
    done: list[Source] = []
    circles: list[str] = []

    def floor(module: str) -> tuple[int, str]:
        folder = module.split(".")[1]
        return FLOORS.index(folder) if folder in FLOORS else len(FLOORS), module

    def visit(source: Source, trail: dict[Source, str]) -> None:
        if source in trail:
            places = list(trail.values())[list(trail).index(source) :]
            circles.append(f"{places[0]}: a circle of imports, {' -> '.join([*places, places[0]])}")
        elif source not in done:
            lines = {module: line for module, _, line in reversed(source.links) if module in kit}
            for module in sorted(lines, key=floor):
                visit(kit[module], trail | {source: f"{source.path}:{lines[module]}"})
            done.append(source)

    for module in sorted(kit, key=floor):
        visit(kit[module], {})
    return done, circles


def reached(entry: str, kit: Kit) -> set[Source]:
    """The files that an entry imports, near or far, and itself."""
    found: set[Source] = set()
    waiting = [module_name(entry)]
    for module in waiting:
        if module in kit and kit[module] not in found:
            found.add(kit[module])
            waiting += [link for link, _, _ in kit[module].links]
    return found


def faults_of_imports(source: Source) -> Iterator[str]:
    """Imports that one flat file cannot hold, or cannot hold at its top."""
    top_level = set(own_scope(source.tree))
    for node in ast.walk(source.tree):
        if not isinstance(node, ImportNode):
            continue
        place = f"{source.path}:{node.lineno}"
        from_module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
        if any(alias.name == "*" for alias in node.names):
            yield f"{place}: a star import: name what is imported"
        elif from_module == "__future__":
            yield f"{place}: a __future__ import would leak into the notebook"
        elif is_kit(node) and not from_module:
            yield f"{place}: import names, not modules: from kit.x.y import name"
        elif is_kit(node) and any(alias.asname for alias in node.names):
            yield f"{place}: a kit name keeps its name: import it without `as`"
        elif is_kit(node) and node not in top_level:
            yield f"{place}: a kit import inside a function or class: move it to the top of the file"
        elif node in top_level and node not in source.imports:
            yield f"{place}: an import below the code at {source.path}:{source.code[0].lineno}: move it up"
        elif node in source.imports and any(node.end_lineno == other.lineno for other in source.code):
            yield f"{place}: an import shares its line with code: give it a line of its own"


def faults_of_links(source: Source, kit: Kit) -> Iterator[str]:
    """Names taken from kit files that are not there, or that do not define them."""
    for module, name, line in source.links:
        if module not in kit:
            yield f"{source.path}:{line}: {module} is no file of the kit to import {name} from"
        elif name not in dict(definitions(kit[module])):
            given = {bound: node.lineno for node in kit[module].imports for bound, _ in meanings(node)}
            yield f"{source.path}:{line}: {name} is not defined in {kit[module].path}:{given.get(name, 1)}"


def faults_of_globals(source: Source) -> Iterator[str]:
    """What a file may not say about itself, since it will be part of another."""
    own = dict(definitions(source))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and node.id in DUNDERS and source.path not in ENTRIES.values():
            yield f"{source.path}:{node.lineno}: {node.id} is the whole bundle's: only an entry may use it"
        elif isinstance(node, ast.Global):
            for name in sorted(set(node.names) - set(own)):
                yield f"{source.path}:{node.lineno}: global {name} makes a name: define it at the top level"


def faults_of_names(text: str, path: str) -> Iterator[str]:
    """Names that nothing defines, by the compiler's own account of scopes."""
    uses = defaultdict(list)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            uses[node.id].append(node.lineno)
    scopes = [symtable.symtable(text, path, "exec")]
    known = {
        symbol.get_name()
        for symbol in scopes[0].get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }
    known |= {*dir(builtins), *DUNDERS, *IN_CLASSES}
    for scope in scopes:
        scopes += scope.get_children()
        first = scope.get_lineno()
        for symbol in scope.get_symbols():
            name = symbol.get_name()
            if symbol.is_referenced() and symbol.is_global() and name not in known:
                line = min((line for line in uses[name] if line >= first), default=first)
                yield f"{path}:{line}: undefined name {name}"


def faults_of_union(sources: list[Source], rooms: dict[str, str]) -> Iterator[str]:
    """Names that are fine file by file and clash in one namespace. `rooms` are modules and folders."""
    imported: dict[str, tuple[str, str]] = {}
    outside = [(s, node) for s in sources for node in s.imports if not is_kit(node)]
    for source, node in outside:
        for name, meaning in meanings(node):
            place = f"{source.path}:{node.lineno}"
            first, earlier = imported.setdefault(name, (meaning, place))
            if first != meaning:
                yield f"{place}: {name} means {meaning} here and {first} at {earlier}"
            if hasattr(builtins, name):
                yield f"{place}: the import of {name} shadows a builtin"
    homes: dict[str, str] = {}
    defined = [(name, f"{source.path}:{line}") for source in sources for name, line in definitions(source)]
    for name, place in [*((name, "build_single_file.py:1") for name in GENERATED), *defined]:
        if name in homes:
            yield f"{place}: {name} is defined twice, first at {homes[name]}"
        elif name in imported:
            yield f"{place}: {name} shadows the import at {imported[name][1]}"
        elif hasattr(builtins, name):
            yield f"{place}: {name} shadows a builtin"
        homes.setdefault(name, place)


def all_faults(kit: Kit) -> Iterator[str]:
    """Everything wrong with the kit: file by file, then taken together."""
    for source in kit.values():
        yield from faults_of_imports(source)
        yield from faults_of_links(source, kit)
        yield from faults_of_globals(source)
        yield from faults_of_names(source.text, source.path)
    ordered, circles = reading_order(kit)
    yield from circles
    rooms = {part: source.path for module, source in kit.items() for part in module.split(".")}
    parts = [reached(entry, kit) for entry in ENTRIES.values()]
    for part in parts:
        yield from faults_of_union([source for source in ordered if source in part], rooms)
    for source in kit.values():
        if source.path not in ENTRIES.values() and not any(source in part for part in parts):
            yield f"{source.path}:1: nobody reaches this file: import it or remove it"


def header(sources: list[Source], starts: list[int], version: str, only: str) -> list[str]:
    """What this file is, where it comes from, and what it holds."""
    digest = hashlib.sha256("".join(f"{s.path}\0{s.text}\0" for s in sources).encode()).hexdigest()
    rows = [
        f"{at} {at + len(banner(s, at)) - s.body_line} {s.path.removeprefix('kit/')}"
        for s, at in zip(sources, starts, strict=True)
    ]
    return [
        "# audiotag-kit: train audio taggers, ensemble them and submit inside the clock, from one file.",
        "# SPDX-License-Identifier: MIT. Copyright (c) 2026 audiotag-kit authors.",
        f"# Version {version}, sha256 of the sources {digest}.",
        "# Edit kit/, not this file: it is made from there by",
        f"#     python build_single_file.py{' --only ' + only if only else ''}",
        "# Functions that are not of the door have neither types nor docstrings here: kit/ has both.",
        "#",
        "# Contents: first line here, line here minus line there, file of kit/. where(LINE) gives the line there.",
        'BUNDLE_SECTIONS = """',
        *rows,
        '"""',
    ]


def hoisted(sources: list[Source], bodies: list[list[str]]) -> list[str]:
    """The imports of all files, the kit's own aside: each once, sorted, without those that only types needed."""
    alias = [f"frozen = {FROZEN[1:]}"] * any(SHORT_FROZEN in lines for lines in bodies)
    tree = ast.parse("\n".join(line for lines in [alias, *bodies] for line in lines))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    plain: set[str] = set()
    named: dict[str, set[str]] = defaultdict(set)
    for node in (node for source in sources for node in source.imports if not is_kit(node)):
        target = named[node.module or ""] if isinstance(node, ast.ImportFrom) else plain
        bound = zip(node.names, meanings(node), strict=True)
        target.update(ast.unparse(alias) for alias, (name, _) in bound if name in used)
    lines = [f"import {name}" for name in sorted(plain)]
    for module, names in sorted((module, names) for module, names in named.items() if names):
        line = f"from {module} import {', '.join(sorted(names))}"
        wrapped = [f"from {module} import (", *(f"    {name}," for name in sorted(names)), ")"]
        lines += [line] if len(line) <= WIDTH else wrapped
    return [*lines, *alias]


def finder() -> list[str]:
    """The generated function that leads from a line of the bundle back to kit/."""
    return [
        "def where(lineno: int) -> str:",
        ' """The source of a line of this file, such as a traceback\'s: "kit/core/errors.py:12"."""',
        " for row in reversed(BUNDLE_SECTIONS.strip().splitlines()):",
        "  first, offset, path = row.split()",
        "  if lineno >= int(first):",
        '   return f"kit/{path}:{max(1, lineno - int(offset))}"',
        f' return f"{BUNDLE}:{{lineno}}"',
    ]


def banner(source: Source, start: int) -> list[str]:
    """The comment above a section that begins at line `start`: its file, its offset, and its docstring."""
    lines = ["", *(f"# {line}".rstrip() for line in source.docstring), ""]
    lines[0] = f"# == {source.path} +{start + len(lines) - source.body_line}"
    return lines


def at_the_door(kit: Kit) -> set[str]:
    """What help() is asked about: the names in the tables of verbs and parts, and in the tables that these name."""
    outside = [source for module, source in kit.items() if module.startswith(DOORS)]
    shown = {name for source in outside for _, name in names_in_tables(source)}
    places = {(module, name) for source in outside for module, name, _ in source.links if name in shown}
    return shown | {
        name for module, table in places for of, name in names_in_tables(kit[module]) if of == table
    }


def names_in_tables(source: Source) -> Iterator[tuple[str, str]]:
    """(table, name) of each name that stands in a table at a file's top level."""
    for node in source.code:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            table = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            yield from ((table, part.id) for part in ast.walk(node.value) if isinstance(part, ast.Name))


def inner_nodes(source: Source, door: set[str]) -> Iterator[ast.AST]:
    """The functions and classes of a file, and those inside them, that are not at the door; methods never are."""
    waiting: list[ast.AST] = [source.tree]
    for node in waiting:
        for child in ast.iter_child_nodes(node):
            shown = isinstance(child, FUNCTIONS) and child.name in door and node is source.tree
            if isinstance(child, FUNCTIONS) and not shown:
                yield child
            if not shown or isinstance(child, ast.ClassDef):
                waiting.append(child)


def cuts_of_types(node: ast.AST) -> Iterator[tuple[ast.expr, int, bool]]:
    """The annotations in and below a function's head: characters that lead to each, and is = tight?"""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        yield from ((argument.annotation, len(": "), True) for argument in arguments if argument.annotation)
        if node.returns:
            yield node.returns, len(" -> "), False
        for inner in own_scope(node):
            if isinstance(inner, ast.AnnAssign) and inner.value is not None:
                yield inner.annotation, len(": "), False


def thinned(source: Source, door: set[str]) -> list[str]:
    """A file's lines, none more or fewer, without what inner functions say to tools and editors.

    Their heads lose types and their docstrings go, of which classes keep the first sentence: kit/ has all of it. The
    door keeps everything.
    """
    lines = source.text.rstrip().split("\n")
    lines = [FOR_TOOLS.sub("", line) for line in lines]
    lines = [SHORT_FROZEN if line == FROZEN else line for line in lines]
    for node in inner_nodes(source, door):
        if isinstance(node, FUNCTIONS) and ast.get_docstring(node):
            first, more = node.body[0], len(node.body) > 1
            begin, end = first.lineno - 1, first.end_lineno or first.lineno
            silent = more and not isinstance(node, ast.ClassDef)
            sentence, *_ = LATER_SENTENCES.split(lines[begin].removesuffix('"""'), maxsplit=1)
            lines[begin:end] = ["" if silent else f'{sentence}"""'] + [""] * (end - first.lineno)
        for annotation, lead, tight in sorted(cuts_of_types(node), key=lambda cut: -cut[0].col_offset):
            row, begin, end = annotation.lineno - 1, annotation.col_offset, annotation.end_col_offset or 0
            if annotation.end_lineno == annotation.lineno and lines[row].isascii():
                rest = lines[row][end:]
                rest = "=" + rest.removeprefix(" = ") if tight and rest.startswith(" = ") else rest
                lines[row] = lines[row][: begin - lead] + rest
    return lines


def body(source: Source, door: set[str]) -> list[str]:
    """The lines below a file's imports, indented by one space a step instead of four: a tenth of kit/ is indent.

    What a docstring indents beyond its own quotes stays as it is, and so do lines inside any other long string.
    """
    lines = source.text.rstrip().split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines]
    cuts = [indent - indent // 4 for indent in indents]
    documented = (node for node in ast.walk(source.tree) if isinstance(node, (*FUNCTIONS, ast.Module)))
    docstrings = {id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and (node.end_lineno or 0) > node.lineno:
            quoted = lines[node.lineno - 1].encode()[node.col_offset :].decode()
            if quoted.lstrip("bfruBFRU").startswith(('"""', "'''")):
                inside = node.col_offset - node.col_offset // 4 if id(node) in docstrings else 0
                for i in range(node.lineno, node.end_lineno or 0):
                    cuts[i] = min(inside, indents[i])
    return [line[cut:] for line, cut in zip(thinned(source, door), cuts, strict=True)][source.body_line - 1 :]


def flatten(sources: list[Source], door: set[str], version: str, only: str) -> str:
    """The bundle. The first round counts lines, the second prints them: no number changes the count."""
    starts, bodies = [0] * len(sources), [body(source, door) for source in sources]
    imports = hoisted(sources, bodies)
    for _ in range(2):
        pages = [header(sources, starts, version, only), imports, finder()]
        for index, source in enumerate(sources):
            starts[index] = sum(len(page) + 2 for page in pages) + 1
            pages.append([*banner(source, starts[index]), *bodies[index]])
    return "\n\n\n".join("\n".join(page) for page in pages) + "\n"


def build(root: Path, only: str = "") -> str:
    """The bundle of `root`/kit, or of the part that `only` names. Errors: Refused, a line per fault."""
    faults: list[str] = []
    kit = read_kit(root, faults)
    version = re.search(r'^VERSION = "(.+)"$', getattr(kit.get("kit.core.runtime"), "text", ""), re.MULTILINE)
    if not version:
        faults.append('kit/core/runtime.py:1: must hold a line such as VERSION = "0.1.0"')
    if module_name(ENTRIES[only]) not in kit:
        faults.append(f"{ENTRIES[only]}:1: this entry is missing")
    faults += all_faults(kit)
    if faults or not version:
        raise Refused("\n".join(dict.fromkeys(faults)))
    part = reached(ENTRIES[only], kit)
    chosen = [source for source in reading_order(kit)[0] if source in part]
    text = flatten(chosen, at_the_door(kit), version[1], only)
    faults += faults_of_names(text, BUNDLE)
    if (size := len(text.encode())) > LIMIT_BYTES:
        faults.append(
            f"{BUNDLE} would be {size / 1000:.1f} kB, over the limit of {LIMIT_BYTES / 1000:.0f} kB"
        )
    if faults:
        raise Refused("\n".join(faults))
    return text


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 with LF line ends beside `path`, then rename: a kill leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode())
    os.replace(part, path)


@dataclass(frozen=True)
class Upload:
    """A file of a dataset: its name there, its text or the file that it is a copy of, and what it is."""

    name: str
    source: str | Path
    about: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source.encode())

    @cached_property
    def digest(self) -> str:
        """The sha256 in hexadecimal."""
        if isinstance(self.source, str):
            return hashlib.sha256(self.source.encode()).hexdigest()
        with open(self.source, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    def write(self, folder: Path) -> None:
        """Put it into a folder, whole."""
        if isinstance(self.source, str):
            write_whole(folder / self.name, self.source)
        else:
            part = folder / f"{self.name}.part"
            shutil.copyfile(self.source, part)
            os.replace(part, folder / self.name)


def pickle_of(path: Path) -> tuple[set[str], list[str]]:
    """What the pickle in a file of torch.save names, and its texts in order; its zip is read whole.

    Errors: Refused for another file, or a damaged one
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise Refused(f"{path} is damaged in {damaged}: copy it again")
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            words = [(word.name, str(value)) for word, value, _ in pickletools.genops(archive.read(pickled))]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"{path} is no checkpoint: no whole file of torch.save ({error})") from None
    named = {value for word, value in words if word.endswith(("GLOBAL", "INST"))}
    return named, [value for word, value in words if word.endswith("UNICODE")]


def look_into(path: Path) -> str:
    """What a checkpoint says of itself, as far as can be seen without torch: not whether its tensors fit.

    Errors: Refused for what is no checkpoint of the kit, or names more than tensors
    """
    named, texts = pickle_of(path)
    if foreign := sorted(name for name in named if not OF_TENSORS.fullmatch(name)):
        raise Refused(f"{path} is no checkpoint: it names {foreign[0]}, and the kit loads tensors alone")
    if texts[:2] != ["format", "card"] or not {"tensors", "members"} & {*texts}:
        raise Refused(f"{path} is no checkpoint of this kit: give what training wrote, e.g. 'run/fold_*.pt'")
    try:
        card = json.loads(texts[2])
        told = [f"{len(card['classes'])} classes"]
        if "runs" in card:
            told.insert(0, f"{card['kind']} of {len(card['runs'])} runs")
        else:
            told.insert(0, str(card["network"]["family"]))
            told.append("all clips" if card["fold"] is None else f"fold {card['fold']}")
    except (ValueError, TypeError, KeyError):
        raise Refused(f"{path} has a damaged card: make it again") from None
    return ", ".join(told + [f"oof lwlrap {card['oof_score']:.4f}"] * bool(card.get("oof_score")))


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and glob patterns name, each once. Errors: Refused for one that names none"""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [path for path in map(Path, names) if path.is_file()]
        if not files:
            raise Refused(f"no file matches {pattern!r}: e.g. --with-checkpoints 'run/fold_*.pt'")
        for path in files:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def flat_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names side by side: where two clash, all begin with their folder's. Errors: Refused"""
    clash = len({path.name for path in paths}) < len(paths)
    places: dict[str, Path] = {}
    for path in paths:
        name = f"{path.absolute().parent.name}_{path.name}" if clash else path.name
        if name in (BUNDLE, METADATA, *places):
            other = places.get(name, "what the builder writes")
            raise Refused(f"{path} and {other} would both be called {name}: rename one, or its folder")
        places[name] = path
    return places


def plan_dataset(name: str | None, text: str, patterns: Sequence[str]) -> list[Upload]:
    """What the folder of OWNER/SLUG is to hold; nothing without a name. Errors: Refused

    The metadata, which names all files, is written first: Kaggle's client refuses a folder that was left half filled.
    """
    if name is None and not patterns:
        return []
    slug = check_dataset_name(name or "")
    files = [Upload(BUNDLE, text, "the bundle, MIT licence")]
    files += [Upload(flat, path, look_into(path)) for flat, path in flat_names(find_files(patterns)).items()]
    facts = {
        "title": slug.replace("-", " ").capitalize(),
        "subtitle": "Train audio taggers, ensemble them and submit in time: one file",
        # Kaggle's list of licences has no MIT, and checkpoints are their maker's.
        "description": f"{BUNDLE} comes under the MIT licence, checkpoints (tensors and JSON) as their maker says.",
        "id": name,
        "licenses": [{"name": "other"}],
        "resources": [{"path": f.name, "description": f"{f.about}; sha256 {f.digest}"} for f in files],
    }
    return [Upload(METADATA, json.dumps(facts, indent=2) + "\n", "what Kaggle is told"), *files]


def check_dataset_name(name: str) -> str:
    """The slug of OWNER/SLUG. Errors: Refused for a name that Kaggle would refuse"""
    owner, _, slug = name.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise Refused(f"--kaggle-dataset wants OWNER/SLUG, your Kaggle user name first, got {name!r}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise Refused(f"a dataset's slug is small letters and digits joined by single hyphens, got {slug!r}")
    if not 6 <= len(slug) <= 50:
        raise Refused(f"a dataset's slug and title have 6 to 50 characters, {slug!r} has {len(slug)}")
    return slug


def stale_files(folder: Path, files: Sequence[Upload]) -> list[Path]:
    """What an earlier call left in the folder and this one will not write.

    Errors: Refused for anything else there, as Kaggle would take it in, and for a checkpoint taken from there
    """
    ours = {BUNDLE, METADATA}
    if (folder / METADATA).is_file():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            told = json.loads((folder / METADATA).read_text(encoding="utf-8"))["resources"]
            ours |= {str(resource["path"]) for resource in told}
    there = sorted(folder.iterdir()) if folder.exists() else []
    for file in files:
        if isinstance(file.source, Path) and folder.resolve() in file.source.resolve().parents:
            raise Refused(f"{file.source} lies in {folder} itself: give the run's own files")
    alien = [path.name for path in there if path.name.removesuffix(".part") not in ours or path.is_dir()]
    if alien:
        shown = ", ".join(alien[:3])
        raise Refused(
            f"{folder} holds {shown}, not of an earlier call: move it, or give another --dataset-dir"
        )
    return [path for path in there if path.name not in {file.name for file in files}]


def dataset_table(folder: Path, files: Sequence[Upload], stale: Sequence[Path], would: str) -> str:
    """Every file with its size, the head of its sum and what it is; what was not looked at; what to type next."""
    width = max(len(file.name) for file in files)
    total = sum(file.size for file in files)
    fits = "within" if len(files) <= LIMIT_FILES and total <= LIMIT_GB * 1e9 else "MORE THAN"
    rows = [
        f"{folder.name}/: {would}{len(files)} files, {total / 1e6:.3f} MB, {fits} what Kaggle documents of a dataset: "
        f"{LIMIT_FILES} files side by side, {LIMIT_GB} GB"
    ]
    rows += [f"  {f.name:{width}}  {f.size / 1e6:9.3f} MB  {f.digest[:12]}  {f.about}" for f in files]
    rows += [f"  {path.name:{width}}  {would}removed: of an earlier call" for path in stale]
    if len(files) > 2:
        rows.append(
            "checkpoints: whole, and tensors and JSON alone; whether they fit their networks, doctor tells:"
        )
        rows.append(f"  python {BUNDLE} doctor --checkpoints '{folder}/*.pt'")
    create = f"kaggle datasets create -p {folder}"
    return "\n".join([*rows, f"next: {create}; later: kaggle datasets version -p {folder} -m 'what is new'"])


def compare(path: Path, text: str) -> None:
    """Errors: Refused, naming the first line that differs, unless the file holds exactly `text`."""
    held = path.read_bytes() if path.is_file() else b""
    if held != text.encode():
        same = takewhile(
            lambda pair: pair[0] == pair[1], zip(held.split(b"\n"), text.encode().split(b"\n"), strict=False)
        )
        raise Refused(
            f"{path.name}:{len(list(same)) + 1}: differs from kit/: run python build_single_file.py"
        )


def read_arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=f"Flatten kit/ into one file, {BUNDLE}.")
    parser.add_argument("--only", default="", choices=["submit"], help="keep just what inference needs")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is out of date"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help=f"the file to write, {BUNDLE} by default")
    parser.add_argument(
        "--kaggle-dataset", metavar="OWNER/SLUG", help="also write a folder to upload as a dataset"
    )
    parser.add_argument(
        "--dataset-dir", type=Path, metavar="DIR", help="that folder, kaggle_dataset by default"
    )
    parser.add_argument(
        "--with-checkpoints", nargs="+", action="extend", default=[], metavar="PATTERN",
        help="checkpoints to lay beside the bundle, e.g. 'run/fold_*.pt'",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="write nothing; say what would be written")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Build, check or write the bundle and a dataset's folder; the exit code."""
    options = read_arguments(words)
    root = Path(__file__).resolve().parent
    out = options.out or root / BUNDLE
    folder = options.dataset_dir or root / "kaggle_dataset"
    try:
        text = build(root, options.only)
        if options.check:
            compare(out, text)
            return 0
        files = plan_dataset(options.kaggle_dataset, text, options.with_checkpoints)
        stale = stale_files(folder, files) if files else []
        if not options.dry_run:
            write_whole(out, text)
            for path in stale:
                path.unlink()
            for file in files:
                file.write(folder)
    except (Refused, OSError) as refused:
        print(refused, file=sys.stderr)
        return 1
    would = "would be " if options.dry_run else ""
    print(f"{out.name}: {would}{len(text.encode()) / 1000:.1f} kB, {len(text.splitlines()):,} lines")
    if files:
        print(dataset_table(folder, files, stale, would))
    return 0


if __name__ == "__main__":
    sys.exit(main())
