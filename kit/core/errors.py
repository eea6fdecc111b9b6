'''The error that users see, and hints that name the right choice.'''

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Value = TypeVar('Value')


class KitError(Exception):
    '''An error that the caller can cure; the message says how.

    The command line and notebooks show it as one line, without a traceback.
    '''

    def _render_traceback_(self) -> list[str]:
        # IPython calls this method, if there is one, to show an exception.
        return [f'KitError: {self}']


COLOUR = re.compile('\x1b\\[[0-9;]*m')  # of a terminal


def suggest(name: str, options: Iterable[str]) -> str:
    '''Valid names as a phrase for an error message: the most similar one, whatever its case, and the first 20.'''
    names = sorted(options)
    exact = {option.lower(): option for option in names}
    near = difflib.get_close_matches(name[:100].lower(), exact, n=1)
    hint = f'did you mean {exact[near[0]]!r}? ' if near else ''
    return f'{hint}the choices are: {", ".join([*names[:20], *["..."] * (len(names) > 20)]) or "none"}'


def misspelt(name: str, options: Iterable[str]) -> str | None:
    '''The option that a name has all letters of, in another order, or all but one.'''
    for option in options:
        alike = difflib.SequenceMatcher(None, name.lower(), option).ratio()
        if sorted(name.lower()) == sorted(option) or alike > 0.86:
            return option
    return None


def check_kind(what: str, values: Iterable[Any], kinds: Any, cure: str) -> None:
    '''Raise KitError unless all values are of one of some types.'''
    for value in values:
        if not isinstance(value, kinds):
            raise KitError(f'{what} is no {type(value).__name__}: {cure}.')


def choose(what: str, name: str, options: Mapping[str, Value]) -> Value:
    '''The option called `name`.'''
    if name not in [*options]:
        raise KitError(f'unknown {what} {name!r}: {suggest(str(name), options)}.')
    return options[name]


def one_line(error: BaseException) -> str:
    '''An exception's message on one line, or its type if it has none.'''
    # libsndfile's own words come without the file's name.
    text = getattr(error, 'error_string', None) or str(error)
    return ' '.join(COLOUR.sub('', text).split()) or type(error).__name__
