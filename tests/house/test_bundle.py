"""The builder: a small kit in, a bundle or every reason why not out; then the real kit."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from build_single_file import (
    FOR_TOOLS,
    FROZEN,
    LIMIT_BYTES,
    SHORT_FROZEN,
    Refused,
    at_the_door,
    build,
    module_name,
    parse,
    read_kit,
)
from tests.house.minikit import DECODE, ENTRY, ERRORS, MINI, ROOT, write_mini

HEAVY = ["matplotlib", "pandas", "sklearn", "soundfile", "timm", "torchaudio"]


def run_builder(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The builder of the small kit, as a script."""
    command = [sys.executable, str(root / "build_single_file.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load(text: str) -> dict[str, object]:
    """The names of a bundle that is imported, not run."""
    names: dict[str, object] = {"__name__": "audiotag_kit"}
    sys.modules.setdefault("audiotag_kit", type(sys)("audiotag_kit"))
    exec(compile(text, "audiotag_kit.py", "exec"), names)
    return names


def refusal(root: Path, changes: dict[str, str]) -> list[str]:
    """The lines by which the builder refuses the small kit so changed."""
    with pytest.raises(Refused) as caught:
        build(write_mini(root, changes))
    return str(caught.value).splitlines()


# What changes in the small kit, and the one line by which it is refused; {entry} is the changed file.
REFUSALS = {
    "a function defined twice": (
        {"kit/cli.py": MINI["kit/cli.py"] + "\n\ndef read_wave() -> None:\n    pass\n"},
        "kit/cli.py:21: read_wave is defined twice, first at kit/sound/decode.py:23",
    ),
    "a private name defined twice": (
        {
            "kit/cli.py": MINI["kit/cli.py"] + "\n_own = 1\n",
            "kit/core/errors.py": ERRORS + "\n_own = 2\n",
        },
        "kit/cli.py:20: _own is defined twice, first at kit/core/errors.py:10",
    ),
    "a class defined twice in one file": (
        {"kit/core/errors.py": ERRORS + "\n\nclass KitError(ValueError):\n    pass\n"},
        "kit/core/errors.py:11: KitError is defined twice, first at kit/core/errors.py:7",
    ),
    "a name under if defined twice": (
        {"kit/core/errors.py": ERRORS + "\nif True:\n    PEAK = 1\n"},
        "kit/sound/decode.py:13: PEAK is defined twice, first at kit/core/errors.py:11",
    ),
    "a name under try defined twice": (
        {"kit/core/errors.py": ERRORS + "\ntry:\n    PEAK: int = 1\nfinally:\n    pass\n"},
        "kit/sound/decode.py:13: PEAK is defined twice, first at kit/core/errors.py:11",
    ),
    "a name of with defined twice": (
        {"kit/core/errors.py": ERRORS + "\nwith memoryview(b'') as PEAK:\n    pass\n"},
        "kit/sound/decode.py:13: PEAK is defined twice, first at kit/core/errors.py:10",
    ),
    "a name of for defined twice": (
        {"kit/core/errors.py": ERRORS + "\nfor PEAK, _ in ():\n    pass\n"},
        "kit/sound/decode.py:13: PEAK is defined twice, first at kit/core/errors.py:10",
    ),
    "a name that shadows a builtin": (
        {"kit/core/errors.py": ERRORS + "\n\ndef max() -> None:\n    pass\n"},
        "kit/core/errors.py:11: max shadows a builtin",
    ),
    "an import that shadows a builtin": (
        {"kit/core/errors.py": "from math import pow\n"},
        "kit/core/errors.py:1: the import of pow shadows a builtin",
    ),
    "a name that shadows an import of another file": (
        {"kit/core/errors.py": ERRORS + "\nmath = 3\n"},
        "kit/core/errors.py:10: math shadows the import at kit/sound/decode.py:3",
    ),
    "a name that the builder needs": (
        {"kit/core/errors.py": ERRORS + "\n\ndef where() -> None:\n    pass\n"},
        "kit/core/errors.py:11: where is defined twice, first at build_single_file.py:1",
    ),
    "a name that stands for every frozen dataclass": (
        {"kit/core/errors.py": ERRORS + "\n\nfrozen = 1\n"},
        "kit/core/errors.py:11: frozen is defined twice, first at build_single_file.py:1",
    ),
    "one import name with two meanings": (
        {
            "kit/core/errors.py": "from cmath import sqrt as math\n\n\nclass KitError(Exception):\n    x = math\n"
        },
        "kit/sound/decode.py:3: math means math here and cmath.sqrt at kit/core/errors.py:1",
    ),
    "a circle": (
        {"kit/core/errors.py": f"from kit.audio.decode import PEAK\n\nP = PEAK\n{ERRORS}"},
        "kit/core/errors.py:1: a circle of imports, "
        "kit/core/errors.py:1 -> kit/sound/decode.py:9 -> kit/core/errors.py:1",
    ),
    "a star": (
        {"kit/core/errors.py": f"from math import *\n{ERRORS}"},
        "kit/core/errors.py:1: a star import: name what is imported",
    ),
    "a kit module": (
        {"kit/only_submit.py": ENTRY.replace("from kit.cli import enter", "import kit.cli\nenter = print")},
        "kit/only_submit.py:3: import names, not modules: from kit.x.y import name",
    ),
    "a relative import": (
        {"kit/only_submit.py": ENTRY.replace("from kit.cli", "from .cli")},
        "kit/only_submit.py:3: import names, not modules: from kit.x.y import name",
    ),
    "a folder": (
        {
            "kit/only_submit.py": ENTRY.replace("kit.cli import enter", "kit import cli").replace(
                "enter(", "cli.enter("
            )
        },
        "kit/only_submit.py:3: kit is no file of the kit to import cli from",
    ),
    "a kit name that is renamed": (
        {"kit/only_submit.py": ENTRY.replace("import submit", "import submit as submit")},
        "kit/only_submit.py:4: a kit name keeps its name: import it without `as`",
    ),
    "a kit import in a function": (
        {
            "kit/core/version.py": 'VERSION = "1"\n\n\ndef f() -> None:\n    from kit.cli import enter\n    enter\n'
        },
        "kit/core/version.py:5: a kit import inside a function or class: move it to the top of the file",
    ),
    "a kit name that its file only imports": (
        {"kit/only_submit.py": ENTRY.replace("kit.cli import enter", "kit.cli import KitError, enter")},
        "kit/only_submit.py:3: KitError is not defined in kit/cli.py:6",
    ),
    "a kit name that nobody defines": (
        {"kit/only_submit.py": ENTRY.replace("import enter", "import enter, leave")},
        "kit/only_submit.py:3: leave is not defined in kit/cli.py:1",
    ),
    "code before an import": (
        {"kit/core/errors.py": ERRORS + "\nimport math\n"},
        "kit/core/errors.py:10: an import below the code at kit/core/errors.py:7: move it up",
    ),
    "an import under if": (
        {"kit/core/errors.py": ERRORS + "\nif len('a'):\n    import math\n"},
        "kit/core/errors.py:11: an import below the code at kit/core/errors.py:7: move it up",
    ),
    "an import beside code": (
        {"kit/learning.py": "import math; RATE = math.pi\n"},
        "kit/learning.py:1: an import shares its line with code: give it a line of its own",
    ),
    "the future": (
        {"kit/learning.py": "from __future__ import annotations\n\nRATE = 1\n"},
        "kit/learning.py:1: a __future__ import would leak into the notebook",
    ),
    "a file nobody reaches": (
        {"kit/spare.py": "X = 1\n"},
        "kit/spare.py:1: nobody reaches this file: import it or remove it",
    ),
    "a package with content": (
        {"kit/core/__init__.py": "# hello\n"},
        "kit/core/__init__.py:1: an __init__.py must be empty: the bundle has no packages",
    ),
    "a file's own name": (
        {"kit/learning.py": "RATE = __name__\n"},
        "kit/learning.py:1: __name__ is the whole bundle's: only an entry may use it",
    ),
    "a file's own place": (
        {"kit/learning.py": "RATE = 1\n\n\ndef f() -> str:\n    return __file__\n"},
        "kit/learning.py:5: __file__ is the whole bundle's: only an entry may use it",
    ),
    "a global that makes a name": (
        {"kit/learning.py": "RATE = 1\n\n\ndef f() -> None:\n    global STATE\n    STATE = 1\n"},
        "kit/learning.py:5: global STATE makes a name: define it at the top level",
    ),
    "a function named like a module": (
        {"kit/learning.py": "RATE = 1\n\n\ndef decode() -> None:\n    pass\n"},
        "kit/learning.py:4: decode is named like a module or folder, kit/sound/decode.py:1",
    ),
    "a missing import that flatness would hide": (
        {"kit/learning.py": "RATE = math.pi\n"},
        "kit/learning.py:1: undefined name math",
    ),
    "an undefined name in a function": (
        {
            "kit/learning.py": "RATE = 1\n\n\ndef f(x: int) -> int:\n    y = [z for z in (x, q)]\n    return y[0]\n"
        },
        "kit/learning.py:5: undefined name q",
    ),
    "a class's name used bare in its method": (
        {
            "kit/learning.py": "RATE = 1\n\n\nclass A:\n    x = 1\n\n    def f(self) -> int:\n        return x\n"
        },
        "kit/learning.py:8: undefined name x",
    ),
    "an undefined annotation": (
        {"kit/learning.py": "RATE = 1\n\n\ndef f(x: Tensor) -> None:\n    pass\n"},
        "kit/learning.py:4: undefined name Tensor",
    ),
    "text that is no Python": ({"kit/learning.py": "RATE = = 1\n"}, "kit/learning.py:1: cannot be parsed: "),
    "no version": (
        {"kit/core/version.py": "VERSION = str(1)\n"},
        'kit/core/version.py:1: must hold a line such as VERSION = "0.1.0"',
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_builder_refuses_and_names_the_places(case: str, tmp_path: Path) -> None:
    changes, line = REFUSALS[case]
    lines = refusal(tmp_path, changes)
    assert any(said.startswith(line) if line.endswith(" ") else said == line for said in lines), lines


def test_all_faults_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    write_mini(tmp_path, {"kit/spare.py": "X = y\n", "kit/learning.py": "from math import *\n\nRATE = 1\n"})
    run = run_builder(tmp_path)
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 3 and "Traceback" not in run.stderr
    assert not (tmp_path / "audiotag_kit.py").exists()


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    write_mini(tmp_path)
    (tmp_path / "kit/only_submit.py").unlink()
    build(tmp_path)
    with pytest.raises(Refused, match=r"kit/only_submit\.py:1: this entry is missing"):
        build(tmp_path, "submit")


def test_scopes_of_python_are_understood(tmp_path: Path) -> None:
    scopes = '''RATE = 1


def outer(n: int) -> int:
    """Names of every kind that are defined."""
    total = 0

    def inner() -> None:
        nonlocal total
        total += n

    inner()
    try:
        import json as math
    except ImportError as error:
        print(error, __name__ if False else math)
    return total + sum(i * j for i in range(n) for j in range(i)) + (lambda k: k)(n)


class Base:
    """Class scope, and the names that Python puts in it."""

    size: int = RATE
    sizes = tuple(size for size in range(3))
    label = __qualname__

    def kind(self) -> type:
        """A method."""
        return __class__
'''
    scopes = scopes.replace("__name__ if False else math", "math")
    names = load(build(write_mini(tmp_path, {"kit/learning.py": scopes})))
    assert names["outer"](3) == 3 + 2 + 3  # type: ignore[operator]


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    first = build(write_mini(tmp_path / "a"))
    windows = {name: text.replace("\n", "\r\n") for name, text in MINI.items()}
    assert build(write_mini(tmp_path / "b", windows)) == first
    for seed in "01":
        out = tmp_path / f"{seed}.py"
        command = [sys.executable, str(tmp_path / "a/build_single_file.py"), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": seed})
        assert out.read_bytes() == first.encode()


def test_another_source_gives_another_digest(tmp_path: Path) -> None:
    first = build(write_mini(tmp_path)).splitlines()[2]
    second = build(write_mini(tmp_path, {"kit/learning.py": "RATE = 0.2\n"})).splitlines()[2]
    assert first.startswith("# Version 9.8.7, sha256") and first != second


def check_layout(text: str, root: Path) -> None:
    """Contents, banners, `where` and the bodies themselves agree, line by line."""
    lines = text.split("\n")
    where = load(text)["where"]
    assert callable(where) and where(1) == "audiotag_kit.py:1"
    starts = [line for line in lines if line.startswith("# == kit/")]
    assert starts
    for banner in starts:
        path, offset = banner.split()[2], int(banner.split()[-1])
        source = parse(path, (root / path).read_text(encoding="utf-8"))
        at = lines.index(banner) + 1
        assert f"\n{at} {offset} {path.removeprefix('kit/')}\n" in text, (
            "the contents name the line where the section begins"
        )
        spoken = lines_for_tools(source.tree)
        for number, line in enumerate(source.text.rstrip().split("\n"), 1):
            if number >= source.body_line:
                kept = lines[number + offset - 1]
                said = SHORT_FROZEN if line == FROZEN else FOR_TOOLS.sub("", line).lstrip(" ")
                assert kept.lstrip(" ") == said or number in spoken
                assert where(number + offset) == f"{path}:{number}"


def lines_for_tools(tree: ast.Module) -> set[int]:
    """The lines of functions' heads, annotated names and all docstrings: where a bundle may say less than kit/."""
    found = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                found |= set(range(node.lineno, node.body[0].lineno))
            if ast.get_docstring(node):
                found |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def code_of(text: str) -> list[str]:
    """The statements below the imports of some Python, as trees, without what functions say to tools: types of their
    arguments and answers, and docstrings, of which classes keep the first sentence."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (words := ast.get_docstring(node)):
            node.body[0] = ast.Expr(ast.Constant(re.split(r"\n|(?<=\.) (?=[A-Z])", words)[0]))
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) and len(node.body) > 1:
                del node.body[0]
            node.body = [without_types(statement) for statement in node.body]
            node.returns = None
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
    return [ast.dump(node) for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]


class WithoutTypes(ast.NodeTransformer):
    """Annotated names with a value become plain ones; classes keep theirs, which dataclasses read."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value, lineno=node.lineno) if node.value else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node


def without_types(statement: ast.stmt) -> ast.stmt:
    """A statement of a function's body, its own annotations gone."""
    changed = WithoutTypes().visit(statement)
    assert isinstance(changed, ast.stmt)
    return changed


def check_meaning(text: str, root: Path) -> None:
    """Narrower indents and fewer types change no statement and no string."""
    if SHORT_FROZEN in text:
        assert f"\nfrozen = {FROZEN[1:]}\n" in text
    bundled = set(code_of(text.replace(f"\n{SHORT_FROZEN}\n", f"\n{FROZEN}\n")))
    banners = [line for line in text.split("\n") if line.startswith("# == kit/")]
    for path in (line.split()[2] for line in banners):
        source = parse(path, (root / path).read_text(encoding="utf-8"))
        assert source.path and set(code_of("\n".join(map(ast.unparse, source.code)))) <= bundled, path


def as_help_shows_it(tree: ast.AST) -> str:
    """Code as text, docstrings without their indents."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (words := ast.get_docstring(node)):
            node.body[0] = ast.Expr(ast.Constant(words))
    return ast.unparse(tree)


def test_what_stands_at_the_door_keeps_its_types_and_all_its_words() -> None:
    text, kit = build(ROOT), read_kit(ROOT, [])
    bundled = {
        node.name: node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    door = at_the_door(kit) & bundled.keys()
    assert {
        "submit",
        "train_run",
        "show",
        "stack",
        "relabel",
        "lsep_loss",
        "FrontendConfig",
        "lwlrap",
    } <= door
    for source in kit.values():
        for node in source.code:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in door:
                if isinstance(node, ast.FunctionDef):
                    assert as_help_shows_it(bundled[node.name]) == as_help_shows_it(node), node.name
                assert ast.get_docstring(bundled[node.name]) == ast.get_docstring(node), node.name
    inner = bundled["mixed_seed"]
    assert isinstance(inner, ast.FunctionDef) and inner.returns is None and ast.get_docstring(inner) is None


def test_every_line_of_a_body_is_kept_and_found_again(tmp_path: Path) -> None:
    check_layout(build(write_mini(tmp_path)), tmp_path)


def test_the_file_reads_from_top_to_bottom(tmp_path: Path) -> None:
    text = build(write_mini(tmp_path))
    parts = [
        "MIT",
        "9.8.7",
        "sha256",
        "Edit kit/, not this file",
        "Contents",
        "import math\nimport os.path\nimport sys\nfrom dataclasses",
        "# Only this error is meant for the caller.",
        "class KitError",
        "# Loud enough for everyone.\nPEAK",
        "def submit",
        'if __name__ == "__main__":',
    ]
    assert sorted(parts, key=text.index) == parts
    assert "from kit" not in text


def test_only_submit_leaves_the_learning_rooms_out(tmp_path: Path) -> None:
    write_mini(tmp_path)
    assert run_builder(tmp_path, "--only", "submit").returncode == 0
    text = (tmp_path / "audiotag_kit.py").read_text()
    assert "RATE" not in text and "kit/only_submit.py" in text and "kit/__main__.py" not in text
    assert "python build_single_file.py --only submit" in text
    assert run_builder(tmp_path, "--only", "submit", "--check").returncode == 0
    assert run_builder(tmp_path, "--check").returncode == 1


def test_check_sees_any_difference(tmp_path: Path) -> None:
    write_mini(tmp_path)
    bundle = tmp_path / "audiotag_kit.py"
    missing = run_builder(tmp_path, "--check")
    assert missing.returncode == 1 and not bundle.exists()
    built = run_builder(tmp_path)
    assert built.returncode == 0 and "kB" in built.stdout
    assert run_builder(tmp_path, "--check").returncode == 0
    changes: list[Callable[[bytes], bytes]] = [
        lambda held: held.replace(b"\n", b"\r\n"),
        lambda held: held + b"\n",
        lambda held: held[:-1],
        lambda held: b"",
    ]
    for change in changes:
        held = bundle.read_bytes()
        bundle.write_bytes(change(held))
        assert run_builder(tmp_path, "--check").returncode == 1
        bundle.write_bytes(held)
    (tmp_path / "kit/learning.py").write_text("RATE = 0.3\n")
    stale = run_builder(tmp_path, "--check")
    assert stale.returncode == 1 and stale.stderr.startswith("audiotag_kit.py:3: differs from kit/")


def test_a_bundle_that_is_too_large_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"kit/learning.py": f"RATE = '{'x' * LIMIT_BYTES}'\n"})
    assert len(said) == 1 and "over the limit of 400 kB" in said[0]


def test_the_mini_kit_covers_what_a_real_file_holds() -> None:
    source = parse("kit/sound/decode.py", DECODE)
    assert source.text.split("\n")[source.body_line - 1] == "# Loud enough for everyone."
    assert module_name(source.path) == "kit.audio.decode"


@pytest.fixture(scope="module", params=["", "submit"], ids=["everything", "only submit"])
def real_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the real kit, whole and in its smaller form."""
    path = tmp_path_factory.mktemp("bundle") / "audiotag_kit.py"
    path.write_text(build(ROOT, request.param), encoding="utf-8")
    return path


def test_the_real_bundle_reads_and_maps_line_by_line(real_bundle: Path) -> None:
    check_layout(real_bundle.read_text(encoding="utf-8"), ROOT)
    check_meaning(real_bundle.read_text(encoding="utf-8"), ROOT)


def test_narrower_indents_change_no_string(tmp_path: Path) -> None:
    text = '''def told():
    """First.

        Deeper by four.
    """
    if True:
        return """as
    it
            stands""", (
            f"""{1}
        too"""
        )
'''
    verbs = MINI["kit/verbs_infer.py"].replace("import read_wave", "import read_wave, told")
    verbs += '\n\nSHOWN = {"told": told}\n'
    bundle = build(
        write_mini(tmp_path, {"kit/sound/decode.py": DECODE + "\n\n" + text, "kit/verbs_infer.py": verbs})
    )
    check_meaning(bundle, tmp_path)
    assert "\n     Deeper by four.\n" in bundle and "\n    it\n            stands" in bundle


def test_the_real_bundle_fits_into_a_cell(real_bundle: Path) -> None:
    text = real_bundle.read_text(encoding="utf-8")
    assert len(text.encode()) <= LIMIT_BYTES
    assert not any(mark in line for line in text.splitlines()[:2] for mark in (">>>", "In ["))
    assert "from __future__" not in text and "\r" not in text


def test_importing_the_bundle_does_nothing_that_shows(real_bundle: Path) -> None:
    code = f"""
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
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=real_bundle.parent, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
