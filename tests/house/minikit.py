'''A kit of a few lines, for tests of the builder: files by path, and a folder to build them in.'''

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ERRORS = '''"""One error."""


class KitError(Exception):
    """Something the caller can cure."""
'''

DECODE = '''"""A path in, a waveform out."""

import math
import os.path

from kit.core.errors import (
    KitError,
)

# Loud enough for everyone.
PEAK: float = math.sqrt(0.25)


def read_wave(path: str) -> float:
    """Decode one file.

        Deeper by four, >>> 1
    """
    if not os.path.isfile(path):
        raise KitError(f"no file {path}")
    return PEAK
'''

CLI = '''"""The command line."""

import sys

from kit.audio.decode import read_wave
from kit.core.runtime import VERSION

RATE = 0.1


def enter(file: str | None) -> None:
    """Run it."""
    if file is None or len(sys.argv) < 2:
        print(f"audiotag-kit {VERSION}")
    else:
        print(read_wave(sys.argv[1]))
'''

ENTRY = '''"""The entry."""

from kit.audio.decode import read_wave
from kit.cli import enter

__all__ = ["read_wave"]


def run_command_line(file: str | None) -> None:
    """Run it."""
    enter(file)


if __name__ == "__main__":
    run_command_line(globals().get("__file__"))
'''

MINI = {
    'kit/__init__.py': '',
    'kit/core/__init__.py': '',
    'kit/core/errors.py': ERRORS,
    'kit/core/runtime.py': '"""The version."""\n\nVERSION = "9.8.7"\n',
    'kit/audio/__init__.py': '',
    'kit/audio/decode.py': DECODE,
    'kit/cli.py': CLI,
    'kit/__main__.py': ENTRY,
}


def write_mini(root: Path, changes: dict[str, str] | None = None) -> Path:
    '''The small kit with some files changed or added, beside a copy of the builder; returns `root`.'''
    for name, text in {**MINI, **(changes or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    shutil.copy(ROOT / 'build_single_file.py', root)
    return root


def run_builder(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    '''The builder of the small kit as a script, in its folder, by a Python without any package.'''
    command = [sys.executable, '-S', '-E', 'build_single_file.py', *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
