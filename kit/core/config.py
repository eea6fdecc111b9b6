'''Settings as frozen, checked dataclasses that convert to JSON and take `key=value` overrides.'''

import dataclasses
import difflib
import json
import math
import reprlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kit.core.errors import KitError, suggest

MAX_ITEMS = 100_000  # of a list, unless its setting has another limit
MAX_TEXT = 10_000
# Settings by librosa's names.
LIBROSA_NAMES = {
    'sr': 'sample_rate', 'fmin': 'f_min_hz', 'fmax': 'f_max_hz', 'norm': 'mel_norm', 'htk': 'mel_scale',
    'ref': 'normalize', 'window': 'win_length',
}  # fmt: skip
SETTINGS_HINT = '`recipes NAME` prints every setting of a recipe'


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Any = (),
    longest: int = MAX_ITEMS,
) -> Any:
    '''A field with a help text. Inclusive bounds and choices apply to each item of a tuple, `longest` at most.'''
    metadata = {'help': help, 'low': low, 'high': high, 'choices': choices, 'longest': longest}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    '''Base class of all settings, converted, also from nested JSON types, and checked when an instance is created.

    Errors: KitError for a wrong type, or a value out of bounds
    '''

    def __new__(cls, /, *values: Any, **settings: Any) -> Self:
        '''Refuse unknown names with the nearest right one, not a dataclass's TypeError.'''
        names = [item.name for item in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                own_name = LIBROSA_NAMES.get(name)
                hint = f'did you mean {own_name!r}?' if own_name in names else f'{suggest(name, names)}.'
                raise KitError(f'{cls.__name__} has no setting {name!r}: {hint}')
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            where = f'{type(self).__name__}.{item.name}'
            value = coerce(getattr(self, item.name), hints[item.name], where, item.metadata.get('longest', MAX_ITEMS))
            check_bounds(value, item.metadata, where)
            # A frozen dataclass has no other way to store the converted value.
            object.__setattr__(self, item.name, value)
        self.check()

    def check(self) -> None:
        '''Check settings that depend on each other; subclasses raise KitError here.'''

    def to_dict(self) -> dict[str, Any]:
        '''The settings as nested JSON types.'''
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def canonical_json(self) -> str:
        '''One line of text, equal for equal settings.'''
        return json.dumps(self.to_dict(), sort_keys=True)

    def override(self, assignments: Sequence[str]) -> Self:
        '''A copy with `key=value` texts applied, such as "frontend.n_mels=64". A value is JSON, or else text.

        Errors: KitError for an unknown key, with the most similar ones, or a wrong value
        '''
        values = self.to_dict()
        for assignment in assignments:
            key, equals, text = assignment.partition('=')
            key = key.strip()
            if not equals:
                raise KitError(f'an override is key=value, got {assignment!r}, e.g. epochs=20.')
            *groups, last = key.split('.')
            target = values
            for group in groups:
                if not isinstance(target.get(group), dict):
                    raise KitError(unknown_setting(key, values, target))
                target = target[group]
            if last not in target:
                raise KitError(unknown_setting(key, values, target))
            target[last] = read_value(text.strip())
        return type(self)(**values)


def unknown_setting(key: str, values: dict[str, Any], group: dict[str, Any]) -> str:
    '''An error message with the settings most like `key`, or those of its group.'''
    near = similar_settings(key, setting_names(values))
    hint = f'did you mean {", ".join(near)}?' if near else f'the choices are: {", ".join(sorted(group))}.'
    return f'no setting {key!r}: {hint} {SETTINGS_HINT}.'


def setting_names(values: dict[str, Any], prefix: str = '') -> list[str]:
    '''The dotted names of nested settings, a group before its members.'''
    names = []
    for name, value in values.items():
        names.append(prefix + name)
        if isinstance(value, dict):
            names += setting_names(value, f'{prefix}{name}.')
    return names


def similar_settings(key: str, names: Sequence[str]) -> list[str]:
    '''Up to three dotted names similar to `key`, the best first. Users forget groups: last parts are compared.'''
    scores = {}
    group, dot, last = key.rpartition('.')
    last = LIBROSA_NAMES.get(last, last)
    key = group + dot + last
    for name in names:
        other = name.rpartition('.')[2]
        same_start = 0.75 * (last.split('_')[0] == other.split('_')[0] != '')
        alike = difflib.SequenceMatcher(None, last, other).ratio()
        same_letters = key.replace('.', '_') == name.replace('.', '_')  # "mixup_p" for "mixup.p"
        scores[name] = max(same_start, alike, float(same_letters))
    least = max(0.7, max(scores.values(), default=0.0) - 0.2)
    return sorted((name for name in names if scores[name] >= least), key=lambda name: -scores[name])[:3]


def read_value(text: str) -> Any:
    '''Parse a text as JSON, or Python's None, True or False; any other text stays.'''
    try:
        return json.loads({'None': 'null', 'True': 'true', 'False': 'false'}.get(text, text))
    except json.JSONDecodeError:
        return text


def check_bounds(value: Any, metadata: typing.Mapping[str, Any], where: str) -> None:
    '''Raise KitError where a value, or a tuple's item, is out of bounds, no choice, or not finite.'''
    low, high, choices = (metadata.get(name) for name in ('low', 'high', 'choices'))
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if isinstance(item, tuple):
            check_bounds(item, metadata, where)
            continue
        if choices and item not in choices:
            raise KitError(f'{where} is {brief(item)}: {suggest(str(item), map(str, choices))}.')
        # Written as "not above": NaN fails too.
        wanted = ''
        if low is not None and not item >= low:
            wanted = f'at least {low}'
        elif high is not None and not item <= high:
            wanted = f'at most {high}'
        elif isinstance(item, float) and not math.isfinite(item):
            wanted = 'a finite number'
        if wanted:
            raise KitError(f'{where} must be {wanted}, got {brief(item)}: {metadata.get("help")}.')


def brief(value: Any) -> str:
    '''A value's text, cut short.'''
    if isinstance(value, int) and value.bit_length() > 1000:
        return 'a huge integer'  # Python writes no integer of more than 4300 digits
    return repr(value) if isinstance(value, str) and len(value) < 200 else reprlib.repr(value)


def coerce(value: Any, hint: Any, where: str, longest: int = MAX_ITEMS) -> Any:
    '''Convert lists and arrays to tuples, dicts to settings, integers to floats.'''
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return coerce(value, next(kind for kind in arguments if kind is not types.NoneType), where, longest)
    if origin is tuple and hasattr(value, 'tolist'):
        value = value.tolist()
    if origin is tuple and isinstance(value, list | tuple):
        if len(value) > longest:
            raise KitError(f'{where} must have at most {longest} items, got {len(value)}.')
        # The items of an inner list are a pair, or a few.
        return tuple(coerce(item, arguments[0], where, 16) for item in value)
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint(**value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and type(value) is int:
        # A longer integer is no float.
        return float(value) if value.bit_length() < 1024 else math.inf
    if hint is str and isinstance(value, str) and len(value) > MAX_TEXT:
        raise KitError(f'{where} must have at most {MAX_TEXT} characters, got {len(value)}.')
    # In Python, True is an int. As a number in settings it is a mistake.
    is_flag = isinstance(value, bool) and hint in (int, float)
    if hint is Any or (isinstance(value, origin or hint) and not is_flag):
        return value
    wanted = {tuple: 'a list', dict: 'a table of names and values'}.get(origin) or hint.__name__
    raise KitError(f'{where} wants {wanted}, got {brief(value)} ({type(value).__name__}).')
