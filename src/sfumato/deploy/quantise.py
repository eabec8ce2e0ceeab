"""Level numbers on the wire: the same levels as `sfumato.split.Channel`, in float32, without torch."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.deploy.manifest import QuantizationSpec

__all__ = ["dequantise", "dtype_of", "quantise"]

Floats = npt.NDArray[np.float32]

_ZERO = np.float32(0)


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The little-endian numpy type of `FP32`, `UINT8`, `UINT16` or `INT64`."""
    return np.dtype({"FP32": "<f4", "UINT8": "u1", "UINT16": "<u2", "INT64": "<i8"}[datatype])


def quantise(z: Floats, levels: QuantizationSpec) -> npt.NDArray[Any]:
    """`clamp(rint((z - low) / w), 0, 2^bits - 1)`, `w = (high - low) / (2^bits - 1)`: the nearest level's number.

    The noise has been added before: what is rounded away is noise and feature together, and the low bits of a float,
    in which a Gaussian's implementation shows, are gone.

    Args:
        z: noisy feature, finite, any shape.
        levels: of the manifest.

    Returns:
        uint8 up to 8 bits, uint16 above, of z's shape.
    """
    low, width, top, dtype = _constants(levels.bits, levels.low, levels.high)
    numbers = z - low
    numbers /= width
    np.rint(numbers, out=numbers)
    np.maximum(numbers, _ZERO, out=numbers)  # half the time of np.clip
    np.minimum(numbers, top, out=numbers)
    return numbers.astype(dtype)


def dequantise(numbers: npt.NDArray[Any], levels: QuantizationSpec) -> Floats:
    """The levels' values, `number w + low`, float32."""
    low, width, _, _ = _constants(levels.bits, levels.low, levels.high)
    values: Floats = numbers.astype(np.float32) * width + low
    return values


@lru_cache(maxsize=16)
def _constants(bits: int, low: float, high: float) -> tuple[np.float32, np.float32, np.float32, np.dtype[Any]]:
    """Value of level 0, distance of two levels, number of the last one, and the type of the numbers."""
    top = 2**bits - 1
    return np.float32(low), np.float32((high - low) / top), np.float32(top), np.dtype("u1" if bits <= 8 else "<u2")
