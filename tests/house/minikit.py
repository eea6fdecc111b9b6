"""A kit of a few lines, for tests of the builder: files by path, and a folder to build them in."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ERRORS = '''"""A wrong input in, one sentence out.

Only this error is meant for the caller.
"""


class KitError(Exception):
    """Something the caller can cure."""
'''

DECODE = '''"""A path in, a waveform out."""

import math
import os.path
from dataclasses import dataclass
from pathlib import Path

from kit.core.errors import (
    KitError,
)

# Loud enough for everyone.
PEAK = math.sqrt(0.25)


@dataclass(frozen=True)
class Wave:
    """Samples."""

    peak: float = PEAK


def read_wave(path: Path) -> Wave:
    """Decode one file."""
    if not os.path.isfile(path):
        raise KitError(f"no file {path}")
    return Wave()
'''

VERBS = '''"""Words in, files out."""

from pathlib import Path

from kit.audio.decode import read_wave


def submit(path: str) -> None:
    """The only verb."""
    print(read_wave(Path(path)))
'''

CLI = '''"""Words in, an exit code out."""

import sys
from collections.abc import Callable

from kit.core.errors import KitError
from kit.core.runtime import VERSION


def enter(verbs: dict[str, Callable[[str], None]], file: str | None) -> None:
    """The door."""
    if file is None or len(sys.argv) < 2:
        print(f"audiotag-kit {VERSION}: {', '.join(verbs)}")
        return
    try:
        verbs[sys.argv[1]](sys.argv[2])
    except KitError as error:
        print(error)
'''

ENTRY = '''"""The command line in, every verb out."""

from kit.cli import enter
from kit.commands import submit

VERBS = {"submit": submit}

if __name__ == "__main__":
    enter(VERBS, globals().get("__file__"))
'''

MINI = {
    "kit/__init__.py": "",
    "kit/core/__init__.py": "",
    "kit/core/errors.py": ERRORS,
    "kit/core/version.py": '"""Nothing in, the version out."""\n\nVERSION = "9.8.7"\n',
    "kit/sound/__init__.py": "",
    "kit/sound/decode.py": DECODE,
    "kit/learning.py": '"""Learning is not needed to infer."""\n\nRATE = 0.1\n',
    "kit/verbs_infer.py": VERBS,
    "kit/cli.py": CLI,
    "kit/__main__.py": ENTRY.replace("from kit.verbs", "from kit.learning import RATE\nfrom kit.verbs")
    + "    print(RATE)\n",
    "kit/only_submit.py": ENTRY,
}


def write_mini(root: Path, changes: dict[str, str] | None = None) -> Path:
    """The small kit with some files changed or added, beside a copy of the builder; returns `root`."""
    for name, text in {**MINI, **(changes or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    shutil.copy(ROOT / "build_single_file.py", root)
    return root
