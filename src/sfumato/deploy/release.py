"""What the device does to the clean feature before it is sent: check, clip, add noise, round."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.deploy.manifest import Manifest, QuantizationSpec
from sfumato.errors import FeatureError

__all__ = ["Release", "dequantise", "dtype_of", "grid", "quantise"]

Floats = npt.NDArray[np.float32]

_SLACK = 1e-6  # of a range's width: the rounding of float32
_FINER = 8  # the grid of floats is 2^8 to 2^9 times finer than the noise
_MANTISSA = 24  # bits of a float32


class Release:
    """`Q(clip(z_hat) + std n)`: from the clean feature of one image to what crosses the wire.

    Range, clip, standard deviation and levels come from the manifest; the network has no part in it.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._range, self._radius = manifest.feature.range, manifest.clip_norm
        self._std, self._levels = manifest.noise.std, manifest.quantization
        self._step = grid(manifest.noise.std) if manifest.noise.std else 0.0

    def __call__(self, feature: Floats, normals: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        """Level numbers, or float32, from a clean feature (1, ...) and standard normal numbers of the same shape.

        A FeatureError refuses one that is not finite, outside its declared range, or too large for the noise.
        """
        clean = feature.astype(np.float64)
        length = math.sqrt(np.vdot(clean, clean))
        if not math.isfinite(length):
            raise FeatureError("the encoder gave NaN or infinite values for this image, so nothing was sent")
        if self._range is not None:
            low, high = self._range
            slack = _SLACK * (high - low)
            if clean.min() < low - slack or clean.max() > high + slack:
                raise FeatureError(
                    f"the encoder gave values from {clean.min():.4g} to {clean.max():.4g} where its manifest declares "
                    f"{low:g} to {high:g}, so nothing was sent; do not use this bundle"
                )
        if self._radius is not None and length > self._radius:
            clean *= self._radius / length
        clean += self._std * normals
        if self._levels is not None:
            return quantise(clean, self._levels)
        if not self._step:
            return clean.astype(np.float32)
        np.rint(np.divide(clean, self._step, out=clean), out=clean)
        if np.abs(clean).max() >= 2**_MANTISSA:
            raise FeatureError(
                "the feature is so large that float32 cannot hold the noise beside it, so nothing was sent; export the "
                "run with levels (--quantize-bits) or train with --clip-norm"
            )
        return (clean * self._step).astype(np.float32)  # exact: a whole number below 2^24 times a power of two


def grid(std: float) -> float:
    """The step of floats on the wire, `2^(floor(log2 std) - 8)`.

    The *sum* of feature and noise is rounded to its multiples: which floats can occur then does not depend on the
    feature, whereas the low bits of `z_hat + noise`, rounded as floats are, tell what z_hat is not.

    >>> grid(0.1)
    0.000244140625
    """
    return 2.0 ** (math.floor(math.log2(std)) - _FINER)


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The little-endian numpy type of `FP32`, `UINT8`, `UINT16` or `INT64`."""
    return np.dtype({"FP32": "<f4", "UINT8": "u1", "UINT16": "<u2", "INT64": "<i8"}[datatype])


def quantise(z: npt.NDArray[Any], levels: QuantizationSpec) -> npt.NDArray[Any]:
    """`clamp(rint((z - low) / w), 0, 2^bits - 1)`, `w = (high - low) / (2^bits - 1)`: the nearest level's number.

    The noise has been added before: what is rounded away is noise and feature together, and the low bits of a float,
    in which a Gaussian's implementation shows, are gone. z is finite; uint8 up to 8 bits, uint16 above.
    """
    numbers = (z - levels.low) / levels.width
    np.rint(numbers, out=numbers)
    np.maximum(numbers, 0, out=numbers)  # half the time of np.clip
    np.minimum(numbers, 2**levels.bits - 1, out=numbers)
    return numbers.astype("u1" if levels.bits <= 8 else "<u2")


def dequantise(numbers: npt.NDArray[Any], levels: QuantizationSpec) -> Floats:
    """The levels' values, `number w + low`, float32."""
    return numbers.astype(np.float32) * np.float32(levels.width) + np.float32(levels.low)
