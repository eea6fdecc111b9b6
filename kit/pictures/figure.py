"""A size in, an empty figure of one look and feel out; a drawn one shows itself in notebooks and saves itself."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.core.files import write_whole

# Okabe and Ito's, told apart by colour-blind people too.
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LOOK: dict[Any, Any] = {
    "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.labelsize": 10, "font.size": 9, "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip
SAVED_AS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}


@dataclass(frozen=True)
class Drawing:
    """A drawn figure of matplotlib's: a notebook shows it inline, `save` writes it."""

    figure: Any
    path: Path | None = None

    def save(self, path: str | Path) -> "Drawing":
        """Write it whole, as its ending says: .png, .svg or .pdf."""
        kind = choose("ending of a picture", Path(path).suffix, SAVED_AS)
        write_whole(Path(path), lambda handle: handle.write(self.drawn(kind)))
        return replace(self, path=Path(path))

    def drawn(self, kind: str = "png") -> bytes:
        """The bytes of its file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=kind, dpi=100)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.drawn()

    def __repr__(self) -> str:
        return str(self.path or "a picture: save('name.png') writes it")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Any, Any]:
    """An empty figure and its axes, as matplotlib's subplots. Units: inches. Errors: KitError without matplotlib"""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise KitError("a picture needs matplotlib: pip install matplotlib.") from error
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **grid)


def draw_spectrogram(
    axes: Any, picture: np.ndarray, seconds: float, bin_hz: np.ndarray, low: float, high: float
) -> None:
    """A spectrogram over seconds, ticks in kHz. Shape: picture (M, N), bin_hz (M,). Units: low, high as picture"""
    khz = bin_hz / 1000
    ticks = [tick for tick in (0.25, 1, 2, 4, 8, 16) if khz[0] <= tick < khz[-1]]
    axes.imshow(
        picture, cmap="magma", vmin=low, vmax=high, origin="lower", aspect="auto",
        extent=(0, seconds, -0.5, len(khz) - 0.5),
    )  # fmt: skip
    axes.set_yticks(np.interp(ticks, khz, np.arange(len(khz))), ticks)
    axes.grid(visible=False)
