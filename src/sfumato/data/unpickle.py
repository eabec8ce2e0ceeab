"""Reading the pickles of the official CIFAR archives without running anything.

A pickle is a program: it may call whatever it can name. Here the only names it can use are the four that a stored
numpy array needs, and even those do not lead to numpy: they lead to the small classes below, which take an array
apart into type, shape and bytes and put it together again after checking them. numpy's own entry points are not safe
to expose: a forged dtype makes numpy read bytes of the file as pointers to Python objects.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from sfumato.errors import DataError

__all__ = ["load_plain_pickle"]

# Numbers and booleans by numpy's codes; in particular not O (objects) and not V (records).
_PLAIN_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_MAX_DEPTH = 20


def load_plain_pickle(data: bytes, name: str) -> Any:
    """Read a pickle of numpy arrays of plain numbers, containers, bytes, str, int, float, bool and None.

    Strings written by Python 2 come out as bytes, as with `pickle.load(..., encoding="bytes")`. A `DataError` says that
    it is damaged or names anything beyond plain numpy arrays; nothing it names is called.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data)).load(), {}, 0)
    except _Refused as refusal:
        raise DataError(
            f"{name} asks for {refusal}, which no data needs: the file may run code of a stranger and was not read; "
            "download it again from its official page, or take the binary version"
        ) from None
    except Exception as error:
        # The pickle virtual machine fails on damaged input in any way there is: IndexError, KeyError, MemoryError, ...
        reason = str(error) or type(error).__name__
        raise DataError(f"{name} is damaged ({reason}); download it again from its official page") from error


class _Refused(Exception):
    """The pickle wants something that plain data does not need."""


class _Name:
    """Stands for a name that is called or an argument; a pickle cannot alter it: its BUILD ends in `__setstate__`."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise _Refused("a change of the reader itself")


class _Dtype:
    """The type of an array's elements: plain numbers only."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, *_: object) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(name, str) or name not in _PLAIN_TYPES:
            raise _Refused(f"an array of type {name!r}")
        self._code = name
        self._order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise _Refused("an array of records")
        self._order = order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self._code).newbyteorder(self._order)


class _Array:
    """An array in parts, as a pickle delivers them."""

    __slots__ = ("_array",)

    def __init__(self, *_: object) -> None:
        self._array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
            raise _Refused("an array of objects")
        kind = dtype.numpy()
        if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError(f"{len(raw)} bytes do not make an array of shape {shape} and type {kind}")
        flat = np.frombuffer(raw, dtype=kind)
        self._array = flat.reshape(shape, order="F" if fortran else "C").copy()

    def numpy(self) -> np.ndarray[Any, Any]:
        if self._array is None:
            raise ValueError("an array without content")
        return self._array


def _encode(text: object, encoding: object) -> bytes:
    # Python 3 stores bytes in old protocols as a latin-1 string; any other codec would be a call of foreign code.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _Refused(f"the codec {encoding!r}")
    return text.encode("latin1")


def _never(*_: object) -> NoReturn:
    raise _Refused("an array that is made in another way")


_NAMES: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _Name(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Name(_Array),
    ("numpy", "ndarray"): _Name(_never),
    ("numpy", "dtype"): _Name(_Dtype),
    ("_codecs", "encode"): _Name(_encode),
}


class _Unpickler(pickle._Unpickler):
    # The variant in Python: the one in C keeps its memo in an array, and one index in a damaged file is enough to make
    # it take all memory. A CIFAR batch has some 50,000 instructions, so speed does not matter.

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise _Refused("an object stored elsewhere")


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """The value with arrays put together; anything that is not plain data is refused.

    `done` keeps what was converted, by identity: parts that a pickle repeats by reference are converted once, or a few
    bytes of nested repetition would take forever.
    """
    if depth > _MAX_DEPTH:
        raise _Refused("deeper nesting than data has")
    if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
        return value
    if id(value) not in done:
        if isinstance(value, _Array):
            done[id(value)] = value.numpy()
        elif type(value) in (list, tuple, set, frozenset):
            done[id(value)] = type(value)(_plain(part, done, depth + 1) for part in value)
        elif type(value) is dict:
            done[id(value)] = {
                _plain(key, done, depth + 1): _plain(part, done, depth + 1) for key, part in value.items()
            }
        else:
            raise _Refused("something that is not data")
    return done[id(value)]
