"""What importing the single file costs on top of torch, and its size.

python -m tests.benchmarks import [REPEATS]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from build_single_file import build
from tests.benchmarks.timing import ratios, show_times, take_turns


def main(repeats: int = 9) -> None:
    """Print the table."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as room:
        bundle = Path(room) / "audiotag_kit.py"
        bundle.write_text(build(root), encoding="utf-8")

        def run(code: str) -> None:
            subprocess.run([sys.executable, "-c", code], cwd=room, check=True)

        run("import audiotag_kit")
        times = take_turns(
            {
                "import torch": lambda: run("import torch"),
                "import torch, audiotag_kit": lambda: run("import torch, audiotag_kit"),
            },
            repeats,
        )
        print(f"import: the bundle has {bundle.stat().st_size / 1000:.1f} kB")
        show_times(times)
        extra = [
            b - a for a, b in zip(times["import torch"], times["import torch, audiotag_kit"], strict=True)
        ]
        middle = sorted(extra)[len(extra) // 2]
        print(f"  on top of torch: {middle:.2f} s ({min(extra):.2f} to {max(extra):.2f}); bar: at most 0.3 s")
        print("  ratio:", ratios(times, "import torch, audiotag_kit", "import torch"))
