"""Settings in frozen dataclasses: every field is checked against its annotation and its range in one call."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sfumato.errors import ConfigError

__all__ = ["check_settings", "check_type"]

_WORDS = {int: "a whole number", float: "a finite number", str: "a text", bool: "True or False", Path: "a path"}
_hints = cache(get_type_hints)


def check_type(name: str, value: object, kind: Any) -> None:
    """Refuse a value that is not of the annotated type; NaN and infinity are no number.

    Raises:
        ConfigError: with the name, the value, and what would be one.

    >>> check_type("epochs", 3, int | None)
    >>> check_type("epochs", "3", int | None)
    Traceback (most recent call last):
    sfumato.errors.ConfigError: epochs is '3'; give a whole number or None
    """
    if not _fits(value, kind):
        raise ConfigError(f"{name} is {value!r}; give {_in_words(kind)}")


def check_settings(
    settings: Any,
    *,
    least: Mapping[str, float] | None = None,
    above: Mapping[str, float] | None = None,
    below: Mapping[str, float] | None = None,
) -> None:
    """Check all fields of a settings dataclass; the last statement that a `__post_init__` can be left with.

    Args:
        settings: an instance of the dataclass.
        least: smallest value, by field.
        above: what a field has to exceed, by field.
        below: what a field may not reach, by field.

    None, where the annotation allows it, is in every range.

    Raises:
        ConfigError: a value has another type than its annotation says, is not finite, or is out of its range.
    """
    for field in fields(settings):
        check_type(field.name, getattr(settings, field.name), _hints(type(settings))[field.name])  # type: ignore[arg-type]
    ranges = (
        (least or {}, lambda value, limit: value >= limit, "at least"),
        (above or {}, lambda value, limit: value > limit, "a number above"),
        (below or {}, lambda value, limit: value < limit, "a number below"),
    )
    for limits, holds, words in ranges:
        for name, limit in limits.items():
            value = getattr(settings, name)
            if value is not None and not holds(value, limit):
                raise ConfigError(f"{name} is {value}; give {words} {limit:g}")


def _fits(value: object, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, parts[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and math.isfinite(value)  # type: ignore[arg-type]
    return kind is Any or isinstance(value, type(None) if kind is None else kind)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is tuple:
        return f"several, each {_in_words(parts[0])}"
    if origin is dict:
        return f"a dictionary whose values are {_in_words(parts[1])}"
    return "None" if kind in (None, type(None)) else _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
