"""Values of a request's tensor: from JSON lists or bytes to one checked array, and back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.server.refusals import INVALID, Refusal

__all__ = ["FeatureReader", "to_bytes"]

_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2")}


class FeatureReader:
    """Checks and reads the one input of a decoder.

    Args:
        manifest: says what the feature looks like.
        max_rows: most rows of one request.
    """

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self.name = manifest.feature.name
        self.datatype = manifest.feature.datatype
        self.shape = manifest.feature.shape
        self.dtype = _DTYPES[self.datatype]
        self.max_rows = max_rows
        self._row = math.prod(self.shape)
        levels = manifest.quantization
        # A level beyond the quantiser's last one is no feature that an encoder could have sent.
        self._last = None if levels is None or levels.bits in (8, 16) else 2**levels.bits - 1

    def check(self, name: object, datatype: object, shape: object) -> int:
        """Compare what a request says of its tensor with what the model takes; give the rows.

        Raises:
            Refusal: INVALID; one sentence says what differs.
        """
        if name != self.name:
            raise Refusal(INVALID, f"the model has one input, '{self.name}'; the request names another one")
        if datatype != self.datatype:
            raise Refusal(INVALID, f"input '{self.name}' has datatype {self.datatype}; the request gives another one")
        if not isinstance(shape, Sequence) or isinstance(shape, str) or any(type(size) is not int for size in shape):
            raise Refusal(INVALID, f"the shape of '{self.name}' is not a list of whole numbers")
        if len(shape) != 1 + len(self.shape) or tuple(shape[1:]) != self.shape:
            wanted = ", ".join(["-1", *map(str, self.shape)])
            raise Refusal(INVALID, f"input '{self.name}' has shape [{wanted}]; the request gives another one")
        rows: int = shape[0]
        if not 1 <= rows <= self.max_rows:
            raise Refusal(INVALID, f"a request holds 1 to {self.max_rows} rows; this one says {min(rows, 10**18)}")
        return rows

    def from_bytes(self, data: bytes | memoryview, rows: int) -> NDArray[Any]:
        """Little-endian, row-major values."""
        size = rows * self._row * self.dtype.itemsize
        if len(data) != size:
            raise Refusal(INVALID, f"input '{self.name}' needs {size} bytes for its shape; {len(data)} came")
        return self._finish(np.frombuffer(data, self.dtype), rows)

    def from_values(self, data: object, rows: int) -> NDArray[Any]:
        """Numbers: one flat list, or lists nested as the shape is."""
        if not isinstance(data, list | np.ndarray):
            raise Refusal(INVALID, f"the data of '{self.name}' is not a list of numbers")
        try:
            values = np.asarray(data)
        except (ValueError, OverflowError, RecursionError):
            raise Refusal(INVALID, f"the lists of '{self.name}' are not nested as its shape is") from None
        if values.dtype.kind not in "iuf":
            raise Refusal(INVALID, f"the data of '{self.name}' holds something that is no {self.datatype} number")
        if values.shape not in ((rows * self._row,), (rows, *self.shape)):
            raise Refusal(
                INVALID, f"input '{self.name}' needs {rows * self._row} values for its shape, flat or nested like it"
            )
        if self.dtype.kind == "u":
            if values.dtype.kind == "f" or values.min() < 0 or values.max() > np.iinfo(self.dtype).max:
                raise Refusal(INVALID, f"the data of '{self.name}' holds something that is no {self.datatype} number")
            return self._finish(values.astype(self.dtype), rows)
        with np.errstate(over="ignore"):
            return self._finish(values.astype(self.dtype), rows)

    def _finish(self, values: NDArray[Any], rows: int) -> NDArray[Any]:
        if self.dtype.kind == "f":
            if not np.isfinite(values).all():
                raise Refusal(INVALID, f"the data of '{self.name}' is not finite (NaN, infinity, or beyond FP32)")
        elif self._last is not None and values.max() > self._last:
            raise Refusal(INVALID, f"the data of '{self.name}' goes beyond the quantiser's last level {self._last}")
        return values.reshape(rows, *self.shape)


def to_bytes(values: NDArray[Any]) -> bytes:
    """Little-endian, row-major bytes."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
