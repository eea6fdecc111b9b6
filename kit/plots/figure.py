'''Matplotlib figures in one style, and HTML pages that hold them.'''

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

# The palette of Okabe and Ito: its colours differ for colour-blind people too.
CURVE_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
PLOT_STYLE: dict[Any, Any] = {
    'axes.grid': True,
    'grid.alpha': 0.25,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 11,
    'axes.labelsize': 10,
    'font.size': 9,
    'figure.titlesize': 11,
    'axes.prop_cycle': f'cycler(color={list(CURVE_COLOURS)})',
}
MAX_ROWS = 40
IMAGE_FORMATS = {'.png': 'png', '.svg': 'svg', '.pdf': 'pdf'}


@dataclass(frozen=True)
class Plot:
    '''A matplotlib figure. A notebook shows it, and `save` writes it to a file.'''

    figure: Any
    path: Path | None = None

    def save(self, path: str | Path) -> 'Plot':
        '''Write the figure as PNG, SVG or PDF, by the ending of the path.'''
        image = self.to_bytes(choose('ending of an image', Path(path).suffix, IMAGE_FORMATS))
        write_whole(Path(path), lambda handle: handle.write(image))
        return replace(self, path=Path(path))

    def to_bytes(self, image_format: str = 'png') -> bytes:
        '''The bytes of the image file.'''
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=image_format, dpi=100)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.to_bytes()

    def __repr__(self) -> str:
        return str(self.path or "a plot: save('name.png') writes it to a file")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Any, Any]:
    '''Create a figure of so many inches and its axes; `grid` goes to matplotlib's `Figure.subplots`.'''
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise KitError('a plot needs matplotlib: pip install matplotlib.') from error
    # A Figure without pyplot: nothing stays open, and no setting of the user's changes.
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        panels = figure.subplots(rows, columns, **grid)
    for axes in np.ravel(panels):
        axes.tick_params(labelsize=8)  # ticks made later do not see the context's settings
    return figure, panels


def shown_name(name: str) -> str:
    '''Make a name safe for matplotlib: long ones lose their middle, and `$` starts no formula.'''
    name = name.encode(errors='replace').decode()  # file names can hold bytes that are no text
    if len(name) > 32:
        # The end stays: names often differ only there, as fold_0.pt, fold_1.pt.
        name = f'{name[:16]}…{name[-15:]}'
    return name.replace('$', r'\$')


def new_row_figure(labels: Sequence[str], width: float, columns: int = 1, **grid: Any) -> tuple[Any, Any]:
    '''Create a figure with a row per label, the first on top, and its axes (columns,); for names see `shown_name`.'''
    figure, panels = new_figure(width, 3.2 + 0.15 * len(labels), 1, columns, sharey=True, squeeze=False, **grid)
    panels[0, 0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    return figure, panels[0]


def draw_matrix(axes: Any, matrix: np.ndarray, labels: Sequence[str]) -> None:
    '''Draw a square matrix as colours; NaN is grey. Labels must have passed `shown_name`.'''
    image = axes.imshow(matrix, cmap='viridis', vmin=0, aspect='auto')
    axes.set(facecolor='0.88', xticks=range(len(labels)))
    axes.set_xticklabels(labels, rotation=90)
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, fraction=0.04)


def draw_spectrogram(axes: Any, spec: np.ndarray, seconds: float, bin_hz: np.ndarray, low: float, high: float) -> None:
    '''Draw a spectrogram (M, N) over seconds and kHz, in colours from `low` to `high`.'''
    khz = bin_hz / 1000
    bins = np.arange(len(khz))
    if (np.diff(khz) > 0).all():
        ticks = np.array([tick for tick in (0.25, 1, 2, 4, 8, 16) if khz[0] <= tick < khz[-1]])
        positions = np.interp(ticks, khz, bins)
    else:
        # Stacked bands have no common scale: label about twelve bins with their own frequency.
        positions = bins[:: -(-len(khz) // 12)]
        ticks = khz[positions].round(1)
    extent = (0, seconds, -0.5, len(khz) - 0.5)
    axes.imshow(spec, cmap='magma', vmin=low, vmax=high, origin='lower', aspect='auto', extent=extent)
    axes.set_yticks(positions, [f'{tick:g}' for tick in ticks])
    axes.grid(visible=False)


PAGE_STYLE = '''body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem}
div{overflow:auto}td{padding:.1rem 1.5rem .1rem 0;border-bottom:1px solid #8885;vertical-align:top}
figure{margin:1rem 0}img{max-width:100%}figcaption{opacity:.7}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#17191a}}'''


def page_table(rows: Iterable[Sequence[object]], summary: str = '') -> str:
    '''An HTML table, or nothing without rows. With a summary, a click on that line opens the table.'''
    lines = ['<tr>' + ''.join(f'<td>{escape(str(cell))}' for cell in row) for row in rows]
    if not lines:
        return ''
    table = '<div><table>' + '\n'.join(lines) + '</table></div>'
    return f'<details><summary>{escape(summary)}</summary>{table}</details>' if summary else table


def page_plot(draw: Callable[..., Plot], *arguments: Any) -> str:
    '''A plot as HTML under its docstring's first line, or the reason why it cannot be drawn.'''
    caption = escape((draw.__doc__ or '').partition('\n')[0])
    try:
        data = base64.b64encode(draw(*arguments).to_bytes()).decode()
    except KitError as error:
        return f'<p>{escape(str(error))}'
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f'<figure><figcaption>{caption}</figcaption>{image}</figure>'


def write_page(path: Path, title: str, sections: Iterable[str]) -> None:
    '''Write an HTML page that needs no other file.'''
    name = escape(title)
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
    write_text(path, '\n'.join([f'{head}<style>{PAGE_STYLE}</style>', f'<h1>{name}</h1>', *sections, '']))
