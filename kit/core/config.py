"""Settings as frozen, checked dataclasses that convert to JSON and take `key=value` overrides."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Self

from kit.core.errors import KitError, closest

SETTINGS_HINT = "`recipes NAME` prints every setting of a recipe"


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
) -> Any:
    """Return a dataclass field with a help text, inclusive bounds and valid choices.

    Bounds and choices apply to each item of a tuple. A dict as default is copied for each instance.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base class of all settings. Values are converted and checked when an instance is created.

    Errors: KitError for a wrong type, or a value out of bounds
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            where = f"{type(self).__name__}.{item.name}"
            value = coerce(getattr(self, item.name), hints[item.name], where)
            check_bounds(value, item.metadata, where)
            # A frozen dataclass has no other way to store the converted value.
            object.__setattr__(self, item.name, value)
        self.check()

    def check(self) -> None:
        """Check settings that depend on each other; subclasses raise KitError here."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested JSON types."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    def digest_text(self) -> str:
        """Return one line of text that is equal for equal settings."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Create settings from nested JSON types.

        Errors: KitError for an unknown name or a wrong value
        """
        hints = typing.get_type_hints(cls)
        for name in values:
            if name not in hints:
                raise KitError(f"{cls.__name__} has no setting {name!r}: {closest(name, hints)}.")
        return cls(**values)

    def override(self, assignments: Sequence[str]) -> Self:
        """Return a copy with `key=value` texts applied, such as "frontend.n_mels=64".

        A key names a nested setting with dots. A value is JSON, or else text.
        Errors: KitError for an unknown key, with the most similar ones, or a wrong value
        """
        values = self.to_dict()
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            key = key.strip()
            if not equals:
                raise KitError(f"an override is key=value, got {assignment!r}, e.g. epochs=20.")
            *groups, last = key.split(".")
            target: Any = values
            for group in groups:
                target = target.get(group) if isinstance(target, dict) else None
            if not isinstance(target, dict) or last not in target:
                raise KitError(f"no setting {key!r}: {setting_hint(key, values)} {SETTINGS_HINT}.")
            target[last] = read_value(text.strip())
        return type(self).from_dict(values)


def setting_hint(key: str, values: dict[str, Any]) -> str:
    """Return a sentence that names the settings most similar to `key`, or all groups and settings of the top level."""
    near = similar_settings(key, setting_names(values))
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"the choices are: {', '.join(sorted(values))}."


def setting_names(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of nested settings, a group before its members."""
    names = []
    for name, value in values.items():
        names.append(prefix + name)
        if isinstance(value, dict):
            names += setting_names(value, f"{prefix}{name}.")
    return names


def similar_settings(key: str, names: Sequence[str], n: int = 3) -> list[str]:
    """Return up to n dotted names similar to `key`, the best first.

    "n_mels" finds "frontend.n_mels" by its last part, "inner.dept" finds "inner.depth" by its spelling,
    "crop_length" finds "crop_s" by its first word, and "mels" finds "frontend.n_mels" by its last part's spelling.
    """
    last_part = {name: name.rpartition(".")[2] for name in names}
    wanted = key.rpartition(".")[2]
    same_part = [name for name in names if last_part[name] == wanted]
    # The cutoff keeps out names that share little more with the key than a long group.
    same_spelling = difflib.get_close_matches(key, names, n, cutoff=0.8)
    found = same_part + same_spelling
    if not found:
        shared = {name: shared_start(wanted, last_part[name]) for name in names}
        longest = max(shared.values(), default=0)
        found = [name for name in names if longest >= 2 and shared[name] == longest]
    if not found:
        plain = {name: last_part[name].replace("_", "") for name in names}
        near = difflib.get_close_matches(wanted.replace("_", ""), plain.values(), n, cutoff=0.7)
        found = [name for part in near for name in names if plain[name] == part]
    return list(dict.fromkeys(found))[:n]


def shared_start(first: str, second: str) -> int:
    """Return how many letters two names share in the equal words at their start, words being joined by "_"."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(first.split("_"), second.split("_"), strict=False))
    return sum(len(word) for word, _ in equal)


def read_value(text: str) -> Any:
    """Parse a text as JSON, or as Python's None, True or False; return any other text unchanged."""
    python_words = {"None": "null", "True": "true", "False": "false"}
    try:
        return json.loads(python_words.get(text, text))
    except json.JSONDecodeError:
        return text


def check_bounds(value: Any, metadata: typing.Mapping[str, Any], where: str) -> None:
    """Raise KitError where a value, or an item of a tuple, is out of bounds, not a choice, or not finite."""
    low = metadata.get("low")
    high = metadata.get("high")
    choices = metadata.get("choices")
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if choices and item not in choices:
            raise KitError(f"{where} is {item!r}: {closest(str(item), map(str, choices))}.")
        # Written as "not above", so that NaN fails too.
        if low is not None and not item >= low:
            wanted = f"at least {low}"
        elif high is not None and not item <= high:
            wanted = f"at most {high}"
        elif isinstance(item, float) and not math.isfinite(item):
            wanted = "a finite number"
        else:
            continue
        raise KitError(f"{where} must be {wanted}, got {item}: {metadata.get('help')}.")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Convert a value to its annotation: lists and arrays to tuples, dicts to settings, integers to floats.

    Errors: KitError for a value of another type
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        inner = next(kind for kind in arguments if kind is not types.NoneType)
        return coerce(value, inner, where)
    if origin is tuple and hasattr(value, "tolist"):
        value = value.tolist()
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(coerce(item, arguments[0], where) for item in value)
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_dict(value)
    if hint is float and type(value) is int:
        return float(value)
    # In Python, True is an int. As a number in settings it is a mistake.
    is_bool_for_number = isinstance(value, bool) and hint in (int, float)
    if hint is Any or (isinstance(value, origin or hint) and not is_bool_for_number):
        return value
    wanted = {tuple: "a list", dict: "a table of names and values"}.get(origin) or hint.__name__
    raise KitError(f"{where} wants {wanted}, got {value!r} ({type(value).__name__}).")
