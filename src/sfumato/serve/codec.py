"""An inference request read from its body, and its answer written: JSON, with binary tensors behind it.

A body comes from a stranger, and a few bytes of JSON can stand for many of Python's: 15 MB of `[]` are 300 MB of lists.
So nothing is built before its size is known. A body is read twice: first only to find the data, which stays bytes
(`msgspec.Raw`), and to refuse one whose other parts are not short; then by its types. Numbers are counted before they
are read.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.manifest import Manifest
from sfumato.serve.errors import Refusal

__all__ = ["BINARY_HEADER", "FeatureReader", "InferRequest", "read_request", "write_answer"]

BINARY_HEADER = b"inference-header-content-length"

_SHORT = 16 << 10  # bytes of a request without its data
_DIGITS = 64  # characters for one number, blanks included
_PIECE = 64 << 10  # bytes of numbers that are read at once, so that other threads get their turn
_BRACKETS = bytes(set(range(256)) - set(b"[],"))
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2")}
_NONE = msgspec.Raw(b"null")


class _InputData(msgspec.Struct):
    data: msgspec.Raw = _NONE


class _Outline(msgspec.Struct):
    inputs: tuple[_InputData]


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_output: bool = False
    timeout: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None  # microseconds


class _InputParameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _InputParameters = _InputParameters()
    data: msgspec.Raw = _NONE


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data: bool | None = None
    classification: msgspec.Raw = _NONE


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Request(msgspec.Struct):
    inputs: tuple[_Input]
    outputs: list[_Output] = []
    parameters: _Parameters = _Parameters()
    id: str | None = None


_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_numbers: dict[str, Any] = {
    kind: msgspec.json.Decoder(numbers).decode for kind, numbers in (("f", list[float]), ("u", list[int]))
}


@dataclass(frozen=True)
class InferRequest:
    """What a body asks: checked features, names of the outputs, those of them sent as bytes, seconds of patience."""

    features: NDArray[Any]
    outputs: list[str]
    binary: set[str]
    id: str | None
    patience: float


class FeatureReader:
    """Checks and reads the one input of a decoder; what is wrong is a refusal."""

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self.name = manifest.feature.name
        self.datatype = manifest.feature.datatype
        self.shape = manifest.feature.shape
        self.dtype = _DTYPES[self.datatype]
        self.max_rows = max_rows
        self._row = math.prod(self.shape)
        levels = manifest.quantization
        # A level beyond the quantiser's last one is no feature that an encoder could have sent.
        self._last = None if levels is None else 2**levels.bits - 1

    def examples(self, rows: int) -> NDArray[Any]:
        """Random features of the declared kind: levels, or numbers in [0, 1)."""
        rng = np.random.default_rng(0)
        if self._last is None:
            return rng.random((rows, *self.shape), dtype=np.float32)
        return rng.integers(0, self._last + 1, (rows, *self.shape)).astype(self.dtype)

    def check(self, given: _Input) -> int:
        """Compare what a request says of its tensor with what the model takes; give the rows."""
        shape = given.shape
        if given.name != self.name:
            raise _invalid(f"the model has one input, '{self.name}'; the request names another one")
        if given.datatype != self.datatype:
            raise _invalid(f"input '{self.name}' has datatype {self.datatype}; the request gives another one")
        if len(shape) != 1 + len(self.shape) or tuple(shape[1:]) != self.shape:
            wanted = ", ".join(["-1", *map(str, self.shape)])
            raise _invalid(f"input '{self.name}' has shape [{wanted}]; the request gives another one")
        if not 1 <= shape[0] <= self.max_rows:
            raise _invalid(f"a request holds 1 to {self.max_rows} rows; this one says {min(shape[0], 10**18)}")
        return shape[0]

    def from_bytes(self, data: memoryview, rows: int) -> NDArray[Any]:
        """Little-endian, row-major values."""
        size = rows * self._row * self.dtype.itemsize
        if len(data) != size:
            raise _invalid(f"input '{self.name}' needs {size} bytes for its shape; {len(data)} came")
        # A copy begins at an aligned address, a view would begin wherever the JSON part ends.
        return self._finish(np.frombuffer(bytes(data), self.dtype), rows)

    def from_json(self, data: msgspec.Raw, rows: int) -> NDArray[Any]:
        """Numbers in valid JSON: one flat list, or lists nested as the shape is."""
        count = rows * self._row
        wrong = _invalid(f"input '{self.name}' needs {count} values for its shape, flat or nested like it")
        no_number = _invalid(f"the data of '{self.name}' holds something that is no {self.datatype} number")
        if len(data) > _DIGITS * count + _SHORT:
            raise wrong
        text = bytes(data)
        brackets = text.translate(None, _BRACKETS)
        if brackets != b"[%b]" % (b"," * (count - 1)) and brackets != _nested((rows, *self.shape)):
            raise wrong
        values = np.empty(count, np.float64)
        text = text.translate(None, b"[]")
        first = done = 0
        while first < len(text):
            end = text.find(b",", first + _PIECE)
            end = len(text) if end < 0 else end
            try:
                piece = _decode_numbers[self.dtype.kind](b"[%b]" % text[first:end])
                values[done : done + len(piece)] = piece
            except (msgspec.DecodeError, OverflowError):
                raise no_number from None
            first, done = end + 1, done + len(piece)
        if self.dtype.kind == "u" and not 0 <= values.min() <= values.max() <= np.iinfo(self.dtype).max:
            raise no_number
        with np.errstate(over="ignore"):
            return self._finish(values.astype(self.dtype), rows)

    def _finish(self, values: NDArray[Any], rows: int) -> NDArray[Any]:
        if self._last is None:
            if not np.isfinite(values).all():
                raise _invalid(f"the data of '{self.name}' is not finite (NaN, infinity, or beyond FP32)")
        elif values.max() > self._last:
            raise _invalid(f"the data of '{self.name}' goes beyond the quantiser's last level {self._last}")
        return values.reshape(rows, *self.shape)


def read_request(body: bytes | bytearray, header_length: bytes | None, model: Any) -> InferRequest:
    """Read and check a whole body; the header says how long its JSON part is."""
    head, binary = _divide(body, header_length)
    try:
        (outline,) = _decode_outline(head).inputs
        if len(head) - len(outline.data) > _SHORT:
            raise _invalid(f"the request without its data is longer than {_SHORT} bytes")
        request = _decode_request(head)
    except msgspec.ValidationError as error:
        # Our types name no value of a client: a message of msgspec holds names of types and of our own fields.
        raise _invalid(f"the request is not what the protocol says ({error})") from None
    except (msgspec.DecodeError, RecursionError):
        raise _invalid("the request is not valid JSON (UTF-8, without NaN and Infinity)") from None
    features = _features(*request.inputs, binary, model.reader)
    outputs = model.outputs.pick([output.name for output in request.outputs])
    as_bytes = set(outputs) if request.parameters.binary_data_output else set()
    for output in request.outputs:
        if output.parameters.classification is not _NONE:
            raise _invalid("the parameter 'classification' is not supported; the outputs are those of the metadata")
        if output.parameters.binary_data is not None:
            (as_bytes.add if output.parameters.binary_data else as_bytes.discard)(output.name)
    timeout = request.parameters.timeout
    return InferRequest(features, outputs, as_bytes, request.id, math.inf if timeout is None else timeout / 1e6)


def write_answer(request: InferRequest, model: Any, values: dict[str, NDArray[np.generic]]) -> tuple[bytes, int | None]:
    """The body of the answer and the length of its JSON part where bytes follow it."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, (datatype, _) in model.outputs.tensors.items():
        if name not in request.outputs:
            continue
        array = values[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if name in request.binary:
            parts.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    head = msgspec.json.encode(answer | {"outputs": outputs})
    return (head, None) if not parts else (b"".join([head, *parts]), len(head))


def _features(given: _Input, binary: memoryview, reader: FeatureReader) -> NDArray[Any]:
    rows = reader.check(given)
    size = given.parameters.binary_data_size
    if size is None:
        if len(binary):
            raise _invalid("bytes follow the JSON part, but no input has a 'binary_data_size'")
        if given.data is _NONE:
            raise _invalid(f"input '{reader.name}' has neither 'data' nor 'binary_data_size'")
        return reader.from_json(given.data, rows)
    if given.data is not _NONE:
        raise _invalid(f"input '{reader.name}' has both 'data' and 'binary_data_size'; give one of them")
    if size != len(binary):
        raise _invalid(f"'binary_data_size' differs from the {len(binary)} bytes behind the JSON part")
    return reader.from_bytes(binary, rows)


def _divide(body: bytes | bytearray, header_length: bytes | None) -> tuple[memoryview, memoryview]:
    whole = memoryview(body)
    if header_length is None:
        return whole, whole[:0]
    if not header_length.isdigit() or len(header_length) > 12 or not 0 < int(header_length) <= len(body):
        raise _invalid("Inference-Header-Content-Length is not a length of this body's JSON part")
    size = int(header_length)
    return whole[:size], whole[size:]


def _nested(shape: tuple[int, ...]) -> bytes:
    """The brackets and commas of lists nested like a shape."""
    inner = _nested(shape[1:]) if len(shape) > 1 else b""
    return b"[%b]" % b",".join([inner] * shape[0])


def _invalid(sentence: str) -> Refusal:
    return Refusal("invalid", sentence)
