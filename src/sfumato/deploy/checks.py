"""Reading untrusted plain values: each has the stated type, or one sentence says which has not."""

import math
from collections.abc import Sequence
from typing import Any

from sfumato.errors import BundleError

__all__ = ["Reader"]

_MISSING = object()
_LARGEST = 2**31 - 1


class Reader:
    """One JSON object, taken apart name by name.

    Args:
        value: what was parsed.
        where: how the object is called in messages.

    Raises:
        BundleError: from every method: the value is missing or of another type.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"the {where} is not a JSON object; export the bundle again")
        self._value = value
        self._where = where
        self._read: set[str] = set()

    def done(self) -> None:
        """Refuse names that nobody read: they would be signed and have no effect."""
        if unknown := sorted(set(self._value) - self._read):
            raise BundleError(f"the {self._where} has an unknown entry {unknown[0]!r}; upgrade sfumato")

    def text(self, name: str) -> str:
        """A string."""
        value: str = self._get(name, lambda value: isinstance(value, str), "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(self._get(name, _list_of(lambda value: isinstance(value, str)), "a list of texts"))

    def choice(self, name: str, offered: Sequence[str]) -> Any:
        """One of some words."""
        return self._get(
            name, lambda value: isinstance(value, str) and value in offered, f"one of {', '.join(offered)}"
        )

    def integer(self, name: str, *, least: int = 0) -> int:
        """A whole number."""
        value: int = self._get(name, lambda value: _whole(value) and value >= least, f"a whole number from {least}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number or null."""
        value: int | None = self._get(name, lambda value: value is None or _whole(value), "a whole number or null")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        return float(self._get(name, _finite, "a finite number"))

    def optional_number(self, name: str) -> float | None:
        """A finite number or null."""
        value = self._get(name, lambda value: value is None or _finite(value), "a finite number or null")
        return None if value is None else float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        return tuple(float(value) for value in self._get(name, _list_of(_finite), "a list of finite numbers"))

    def shape(self, name: str) -> tuple[int, ...]:
        """A list of sizes from 1, not empty, whose product is a sensible one."""

        def fits(value: Any) -> bool:
            return _list_of(_whole)(value) and 0 < len(value) <= 8 and min(value) >= 1 and math.prod(value) <= _LARGEST

        return tuple(self._get(name, fits, "a list of sizes from 1"))

    def mapping(self, name: str) -> dict[str, Any]:
        """An object of any content."""
        value: dict[str, Any] = self._get(name, lambda value: isinstance(value, dict), "an object")
        return value

    def optional_mapping(self, name: str) -> dict[str, Any] | None:
        """An object of any content, or null."""
        value: dict[str, Any] | None = self._get(
            name, lambda value: value is None or isinstance(value, dict), "an object or null"
        )
        return value

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""

        def fits(value: Any) -> bool:
            return isinstance(value, dict) and all(isinstance(part, str) for part in value.values())

        value: dict[str, str] = self._get(name, fits, "an object of texts")
        return value

    def part(self, name: str) -> "Reader":
        """An object to be taken apart in turn."""
        return Reader(self.mapping(name), f"{name} part of the {self._where}")

    def optional_part(self, name: str) -> "Reader | None":
        """Likewise, or null."""
        value = self.optional_mapping(name)
        return None if value is None else Reader(value, f"{name} part of the {self._where}")

    def _get(self, name: str, fits: Any, wanted: str) -> Any:
        value = self._value.get(name, _MISSING)
        self._read.add(name)
        if value is _MISSING:
            raise BundleError(f"the {self._where} lacks {name!r}; export the bundle again")
        if not fits(value):
            raise BundleError(f"{name!r} of the {self._where} is not {wanted}; export the bundle again")
        return value


def _list_of(fits: Any) -> Any:
    return lambda value: isinstance(value, list) and all(fits(part) for part in value)


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
