"""Sizes that are ordinary numbers for the forward that reads them, and remember how they were computed."""

import operator
from collections.abc import Callable
from typing import Any, Protocol

from sfumato.split.values import Value

__all__ = ["Dim"]


class Arithmetic(Protocol):
    """Who writes down what is computed from sizes."""

    active: bool

    def computed(self, function: Any, operands: tuple[Any, ...], result: int) -> int:
        """The result of `function(*operands)` as a size of its own."""


class Dim(int):
    """A size that is an ordinary number for the forward that reads it, and remembers how it was computed."""

    value: Value
    recorder: Arithmetic

    @classmethod
    def of(cls, number: int, value: Value, recorder: Arithmetic) -> "Dim":
        """The number with its origin."""
        made = cls(number)
        made.value, made.recorder = value, recorder
        value.size = True
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    __copy__ = int.__int__


def _remembered(name: str, function: Any, *, swapped: bool = False) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Dim, *other: Any) -> Any:
        result = plain(self, *other)
        if type(result) is not int or not self.recorder.active:
            return result
        operands = (self, *other)
        return self.recorder.computed(function, operands[::-1] if swapped else operands, result)

    return method


for _name, _function in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}.items():
    setattr(Dim, f"__{_name}__", _remembered(f"__{_name}__", _function))
    setattr(Dim, f"__r{_name}__", _remembered(f"__r{_name}__", _function, swapped=True))
Dim.__neg__ = _remembered("__neg__", operator.neg)  # type: ignore[method-assign]
