"""Level numbers on the wire: the same levels as `sfumato.split.Channel`, in float32, without torch."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.deploy.manifest import QuantizationSpec

__all__ = ["dequantise", "dtype_of", "quantise"]

Floats = npt.NDArray[np.float32]


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
    top = 2**levels.bits - 1
    numbers = z - np.float32(levels.low)
    numbers /= _width(levels)
    np.rint(numbers, out=numbers)
    np.maximum(numbers, 0, out=numbers)  # half the time of np.clip
    np.minimum(numbers, top, out=numbers)
    return numbers.astype(np.uint8 if levels.bits <= 8 else np.dtype("<u2"))


def dequantise(numbers: npt.NDArray[Any], levels: QuantizationSpec) -> Floats:
    """The levels' values, `number w + low`, float32."""
    values: Floats = numbers.astype(np.float32) * _width(levels) + np.float32(levels.low)
    return values


def _width(levels: QuantizationSpec) -> np.float32:
    return np.float32((levels.high - levels.low) / (2**levels.bits - 1))
