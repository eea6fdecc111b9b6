"""Settings as frozen, checked dataclasses, to and from JSON and key=value texts."""

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
    choices: tuple[Any, ...] = (),
) -> Any:
    """A dataclass field with help, inclusive bounds and choices; a dict is copied."""
    facts = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=facts)
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """Base of all settings, checked at birth. Errors: KitError for a wrong type or a value out of bounds"""

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
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    def digest_text(self) -> str:
        """One line, equal for equal settings."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from JSON types. Errors: KitError for an unknown name or a wrong value"""
        hints = typing.get_type_hints(cls)
        for name in values:
            if name not in hints:
                raise KitError(f"{cls.__name__} has no setting {name!r}: {closest(name, hints)}.")
        return cls(**values)

    def override(self, assignments: list[str]) -> Self:
        """A copy with `key=value` texts applied; keys may be dotted, values JSON or text."""
        values = self.to_dict()
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise KitError(f"an override is key=value, got {assignment!r}, e.g. epochs=20.")
            *outer, last = key.strip().split(".")
            inner = values
            for name in outer:
                if not isinstance(inner.get(name), dict):
                    raise KitError(f"no group of settings {name!r}: {closest(name, inner)}.")
                inner = inner[name]
            if last not in inner:
                raise KitError(f"no setting {key!r}: {closest(last, inner)}.")
            inner[last] = read_value(text)
        return type(self).from_dict(values)


def read_value(text: str) -> Any:
    """The JSON value, or None, True, False, that a text is, else the text."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


def check_bounds(value: Any, facts: typing.Mapping[str, Any], where: str) -> None:
    """Raise KitError where a value, or an item, is out of bounds or no choice."""
    low, high, choices = (facts.get(name) for name in ("low", "high", "choices"))
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if choices and item not in choices:
            raise KitError(f"{where} is {item!r}: {closest(str(item), map(str, choices))}.")
        if low is not None and not item >= low:
            wanted = f"at least {low}"
        elif high is not None and not item <= high:
            wanted = f"at most {high}"
        elif isinstance(item, float) and not math.isfinite(item):
            wanted = "a finite number"
        else:
            continue
        raise KitError(f"{where} must be {wanted}, got {item}: {facts.get('help')}.")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """The value as annotated: lists and arrays to tuples, dicts to settings, ints to floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return coerce(value, next(a for a in arguments if a is not types.NoneType), where)
    if origin is tuple and hasattr(value, "tolist"):
        value = value.tolist()
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(coerce(item, arguments[0], where) for item in value)
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_dict(value)
    if hint is float and type(value) is int:
        return float(value)
    no_number = isinstance(value, bool) and hint in (int, float)
    if hint is Any or (isinstance(value, origin or hint) and not no_number):
        return value
    wanted = {tuple: "a list", dict: "a table of names and values"}.get(origin) or hint.__name__
    raise KitError(f"{where} wants {wanted}, got {value!r} ({type(value).__name__}).")
