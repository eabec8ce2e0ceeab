"""The Protocol Buffers wire format, as far as an edge device needs it: ONNX files are inspected, tensors are sent.

A device carries neither the package `onnx` nor generated stubs. Encoding: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator

__all__ = ["WireError", "field", "fields", "message", "number", "numbers", "varint"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST = 10  # bytes of a 64-bit varint

Value = int | memoryview


class WireError(ValueError):
    """The bytes are not a Protocol Buffers message."""


def fields(data: bytes | memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of one message in their order: (number, an integer or the bytes of what has a length).

    Raises:
        WireError: the bytes end in the middle of a field or hold an unknown kind of field.
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        kind, name = tag & 7, tag >> 3
        value: Value
        if kind == _VARINT:
            value, at = _read_varint(view, at)
        elif kind in (_FIXED64, _FIXED32, _BYTES):
            size = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                size, at = _read_varint(view, at)
            if at + size > len(view):
                raise WireError("a field is cut off")
            value, at = view[at : at + size], at + size
        else:
            raise WireError(f"a field is of the unknown kind {kind}")
        if name == 0:
            raise WireError("a field has the number 0")
        yield name, value


def numbers(value: Value) -> list[int]:
    """A repeated integer field's values, packed or single."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        one, at = _read_varint(value, at)
        found.append(one)
    return found


def varint(value: int) -> bytes:
    """A non-negative integer in base 128, lowest digits first."""
    if value < 0:
        raise ValueError(f"{value} is negative")
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(name: int, value: bytes | str) -> bytes:
    """A field with a length: bytes, a text or an encoded message."""
    data = value.encode() if isinstance(value, str) else value
    return varint(name << 3 | _BYTES) + varint(len(data)) + data


def number(name: int, value: int) -> bytes:
    """An integer field."""
    return varint(name << 3 | _VARINT) + varint(value)


def message(*parts: bytes) -> bytes:
    """A message from its fields."""
    return b"".join(parts)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST):
        if at >= len(view):
            raise WireError("a number is cut off")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at
    raise WireError("a number is too long")
