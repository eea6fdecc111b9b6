"""Settings in, frozen and checked dataclasses out; JSON and key=value overrides both ways."""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Self

from kit.core.errors import KitError, closest


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field that knows its own help, bounds (inclusive) and choices."""
    facts = {"help": help, "low": low, "high": high, "choices": choices}
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return field(default_factory=lambda: default, metadata=facts)
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """Base of every settings class: checked at birth, round-trips through JSON.

    Errors: KitError for a wrong type, a value out of bounds, or a name that is no setting.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            where = f"{type(self).__name__}.{item.name}"
            value = coerce(getattr(self, item.name), hints[item.name], where)
            object.__setattr__(self, item.name, value)
            check_bounds(value, item.metadata, where)
        self.check()

    def check(self) -> None:
        """Relations between settings; subclasses raise KitError here."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, nested."""
        return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self))))

    def digest_text(self) -> str:
        """One canonical line: equal settings give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from JSON types. Raises KitError for an unknown name or a wrong value."""
        hints = typing.get_type_hints(cls)
        for name in values:
            if name not in hints:
                raise KitError(f"{cls.__name__} has no setting {name!r}: {closest(name, hints)}.")
        return cls(**values)

    def override(self, assignments: list[str]) -> Self:
        """A copy with `key=value` texts applied; keys may be dotted, values are JSON or plain text."""
        values = self.to_dict()
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise KitError(f"an override is key=value, got {assignment!r}, e.g. epochs=20.")
            *outer, last = key.strip().split(".")
            inner = values
            for name in outer:
                if not isinstance(inner.get(name), dict):
                    raise KitError(f"{key!r}: no group of settings {name!r}: {closest(name, inner)}.")
                inner = inner[name]
            if last not in inner:
                raise KitError(f"no setting {key!r}: {closest(last, inner)}.")
            inner[last] = read_value(text)
        return type(self).from_dict(values)


def read_value(text: str) -> Any:
    """A JSON value where the text is one, else the text itself; None and True as in Python too."""
    plain = {"None": None, "True": True, "False": False}
    if text in plain:
        return plain[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def check_bounds(value: Any, facts: typing.Mapping[str, Any], where: str) -> None:
    """Raise KitError where a value leaves its bounds or choices; a tuple is checked item by item."""
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        low, high, choices = facts.get("low"), facts.get("high"), facts.get("choices")
        if choices is not None and item not in choices:
            raise KitError(f"{where} is {item!r}: {closest(str(item), map(str, choices))}.")
        if low is not None and not item >= low:
            raise KitError(f"{where} must be at least {low}, got {item}: {facts.get('help')}.")
        if high is not None and not item <= high:
            raise KitError(f"{where} must be at most {high}, got {item}: {facts.get('help')}.")
        if isinstance(item, float) and not math.isfinite(item):
            raise KitError(f"{where} must be a finite number, got {item}: {facts.get('help')}.")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """The value as its annotation wants it: lists to tuples, dicts to settings, ints to floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerce(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise KitError(f"{where} wants a list, got {value!r}.")
        return tuple(coerce(item, arguments[0], where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise KitError(f"{where} wants a table of names and values, got {value!r}.")
        return value
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool))):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise KitError(f"{where} wants {wanted}, got {value!r} ({type(value).__name__}).")
