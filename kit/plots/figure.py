"""Figures of one style, and HTML pages that hold them."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.core.files import write_text, write_whole

# Okabe and Ito's, told apart by colour-blind people too.
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LOOK: dict[Any, Any] = {
    "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.labelsize": 10, "font.size": 9, "figure.titlesize": 11,
    "axes.prop_cycle": f"cycler(color={[*CURVE_COLOURS]})",
}  # fmt: skip
MOST_ROWS = 40
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
        panels = figure.subplots(rows, columns, **grid)
    for axes in np.ravel(panels):
        axes.tick_params(labelsize=8)  # ticks made later know nothing of the look
    return figure, panels


def shown_name(name: str) -> str:
    """A name as a label: cut where it is long, without bytes that are no text, its dollars no formulas."""
    name = name.encode(errors="replace").decode()
    return (name if len(name) < 33 else name[:30] + "…").replace("$", r"\$")


def new_rows(names: Sequence[str], width: float, columns: int = 1, **grid: Any) -> tuple[Any, Any]:
    """An empty figure with a row for each name, the first on top, and its axes (columns,). Units: inches"""
    height, facts = 3.2 + 0.15 * len(names), {"sharey": True, "squeeze": False}
    figure, panels = new_figure(width, height, 1, columns, **facts, **grid)
    places, labels = range(len(names)), [*map(shown_name, names)]
    panels[0, 0].set(yticks=places, yticklabels=labels, ylim=(len(names) - 0.5, -0.5))
    return figure, panels[0]


def draw_matrix(axes: Any, matrix: np.ndarray, names: Sequence[str]) -> None:
    """A square of numbers, grey where there is none. Shape: matrix (K, K), names K"""
    seen = axes.imshow(matrix, cmap="viridis", vmin=0, aspect="auto")
    axes.set(facecolor="0.88", xticks=range(len(names)))
    axes.set_xticklabels(map(shown_name, names), rotation=90)
    axes.grid(visible=False)
    axes.figure.colorbar(seen, ax=axes, fraction=0.04)


def draw_spectrogram(
    axes: Any, picture: np.ndarray, seconds: float, bin_hz: np.ndarray, low: float, high: float
) -> None:
    """A spectrogram over seconds, ticks in kHz. Shape: picture (M, N), bin_hz (M,). Units: low, high as picture"""
    khz = bin_hz / 1000
    ticks: Any = [tick for tick in (0.25, 1, 2, 4, 8, 16) if khz[0] <= tick < khz[-1]]
    places = np.interp(ticks, khz, np.arange(len(khz)))
    if (np.diff(khz) <= 0).any():  # bands one above the other
        places = np.arange(0, len(khz), -(-len(khz) // 12))
        ticks = khz[places].round(1)
    axes.imshow(
        picture, cmap="magma", vmin=low, vmax=high, origin="lower", aspect="auto",
        extent=(0, seconds, -0.5, len(khz) - 0.5),
    )  # fmt: skip
    axes.set_yticks(places, ticks)
    axes.grid(visible=False)


PAGE_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem}
div{overflow:auto}td{padding:.1rem 1.5rem .1rem 0;border-bottom:1px solid #8885;vertical-align:top}
figure{margin:1rem 0}img{max-width:100%}figcaption{opacity:.7}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#17191a}}"""


def page_table(rows: Iterable[Sequence[object]], folded: str = "") -> str:
    """A table, or a line that shows it when clicked; nothing without rows."""
    cells = "\n".join("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in row) for row in rows)
    table = f"<div><table>{cells}</table></div>" if cells else ""
    return f"<details><summary>{escape(folded)}</summary>{table}</details>" if table and folded else table


def page_picture(draw: Callable[..., Drawing], *given: Any) -> str:
    """What a function draws under its own first sentence, or why it cannot."""
    said = escape((draw.__doc__ or "").partition("\n")[0])
    try:
        data = base64.b64encode(draw(*given).drawn()).decode()
    except KitError as error:
        return f"<p>{escape(str(error))}"
    return f'<figure><figcaption>{said}</figcaption><img alt="{said}" src="data:image/png;base64,{data}"></figure>'


def write_page(path: Path, title: str, pieces: Iterable[str]) -> None:
    """Write the page, whole."""
    name = escape(title)
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{PAGE_STYLE}</style>'
    write_text(path, "\n".join([head, f"<h1>{name}</h1>", *pieces, ""]))
