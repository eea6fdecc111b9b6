"""A title and pieces in, one HTML page out that holds its pictures and needs nothing else."""

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kit.core.errors import KitError
from kit.core.files import write_text
from kit.pictures.figure import Drawing

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
