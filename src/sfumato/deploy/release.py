"""What the device does to the clean feature before it is sent: check, clip, add noise, round."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from sfumato.deploy.manifest import NOISE, Manifest, QuantizationSpec
from sfumato.errors import BundleError, FeatureError

__all__ = ["Release", "dtype_of", "grid", "noise_shape", "quantise"]

Floats = npt.NDArray[np.float32]

_SLACK = 1e-6  # of a range's width: the rounding of float32
_FINER = 8  # the grid of floats is 2^8 to 2^9 times finer than the noise
_MANTISSA = 24  # bits of a float32


class Release:
    """`Q(clip(z_hat) + std n)`: from the clean feature of one image to what crosses the wire.

    Range, clip, standard deviation and levels come from the manifest, `shape` from `noise_shape`; the network has no
    part in it. The noise of one feature takes `draws` normal numbers.
    """

    def __init__(self, manifest: Manifest, shape: Floats | None = None) -> None:
        size = math.prod(manifest.feature.shape)
        # The product is taken in float32, a third of the time; the sum with the feature is rounded to levels or a grid.
        self._shape = None if shape is None else (shape[:, 0].astype(np.float64), np.ascontiguousarray(shape[:, 1:]))
        self._independent = shape is None or bool(shape[:, 0].any())
        self.draws = size * self._independent + (0 if shape is None else shape.shape[1] - 1)
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
        if self._shape is None:
            clean += self._std * normals.reshape(clean.shape)
        else:
            std, factor = self._shape
            noise = (factor @ normals[clean.size * self._independent :].astype(np.float32)).astype(np.float64)
            if self._independent:
                noise += std * normals[: clean.size]
            clean += noise.reshape(clean.shape)
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


def noise_shape(folder: Path, manifest: Manifest) -> Floats | None:
    """The numbers of noise with a shape, (D, 1 + r); None where the noise is white.

    Raises:
        BundleError: they are not finite, not of the feature's size, or not of the declared standard deviation.
    """
    if manifest.noise.rank is UNSET:
        return None
    data, columns = manifest.read_file(folder, NOISE), manifest.noise.rank + 1
    size = math.prod(manifest.feature.shape)
    if len(data) != 4 * size * columns:
        raise BundleError(f"{NOISE} has {len(data)} bytes, not those of {size} x {columns} numbers; export it again")
    shape = np.frombuffer(data, "<f4").reshape(size, columns)
    power = float(np.square(shape, dtype=np.float64).sum() / size)
    if not math.isclose(math.sqrt(power), manifest.noise.std, rel_tol=1e-3):  # NaN is close to nothing
        raise BundleError(
            f"{NOISE} adds noise of standard deviation {math.sqrt(power):g} where the manifest declares "
            f"{manifest.noise.std:g}; do not use this bundle"
        )
    return shape


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
