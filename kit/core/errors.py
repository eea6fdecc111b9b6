"""The error that users see, with its cure."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class KitError(Exception):
    """What the caller can cure; the command line prints it as one line and exits with 2, a notebook shows one."""

    def _render_traceback_(self) -> list[str]:
        return [f"KitError: {self}"]


def closest(name: str, options: Iterable[str]) -> str:
    """The valid names in a phrase for an error, the likely one first."""
    names = sorted(options)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}the choices are: {', '.join(names) or 'none'}"


def choose(what: str, name: str, options: Mapping[str, Value]) -> Value:
    """The option called `name`. Errors: KitError that lists the right names"""
    if name not in options:
        raise KitError(f"unknown {what} {name!r}: {closest(name, options)}.")
    return options[name]
