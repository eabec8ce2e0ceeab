"""Queries and answers of the Open Inference Protocol as bytes: JSON with binary tensors, and Protocol Buffers.

A query is encoded once. Whatever happens on the way, what is sent again are these bytes, never new noise.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.deploy import protobuf
from sfumato.deploy.manifest import Manifest
from sfumato.deploy.quantise import dtype_of
from sfumato.errors import RemoteError

__all__ = ["HEADER", "Query", "grpc_answer", "grpc_query", "http_answer", "http_query"]

HEADER = "Inference-Header-Content-Length"

Tensors = dict[str, npt.NDArray[Any]]

_DATATYPES = ("FP32", "INT64")
# Field numbers of ModelInferRequest and ModelInferResponse.
_NAME, _VERSION, _INPUTS, _RAW_INPUT = 1, 2, 5, 7
_OUTPUTS, _RAW_OUTPUT = 5, 6
_TENSOR_NAME, _TENSOR_DATATYPE, _TENSOR_SHAPE, _TENSOR_CONTENTS = 1, 2, 3, 5
_CONTENTS = {"INT64": (3, "<i8"), "FP32": (6, "<f4")}


@dataclass(frozen=True)
class Query:
    """One request, ready to be sent as often as it takes.

    Attributes:
        path: of the HTTP request; empty for gRPC.
        headers: of the HTTP request.
        body: the bytes.
    """

    path: str
    headers: dict[str, str]
    body: bytes


def http_query(manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
    """A POST of the feature (n, ...) with its bytes behind the JSON."""
    raw = _raw(manifest, feature)
    head = _http_head(manifest.feature.name, feature.shape, manifest.feature.datatype, len(raw))
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
    return Query(f"/v2/models/{manifest.name}/versions/{manifest.version}/infer", headers, head + raw)


@lru_cache(maxsize=64)  # a device asks the same question about one image after the other
def _http_head(name: str, shape: tuple[int, ...], datatype: str, size: int) -> bytes:
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(asked, separators=(",", ":")).encode()


def http_answer(headers: Mapping[str, str], body: bytes) -> Tensors:
    """The tensors of a response, binary or JSON.

    Raises:
        RemoteError: it is not what the protocol says.
    """
    try:
        length = next((int(value) for name, value in headers.items() if name.lower() == HEADER.lower()), len(body))
        if not 0 <= length <= len(body):
            raise ValueError("its header is longer than the answer")
        outputs = json.loads(body[:length])["outputs"]
        found: Tensors = {}
        at = length
        for one in outputs:
            dtype = _dtype(one["datatype"])
            size = one.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.array(one["data"], dtype)
            else:
                values = np.frombuffer(body[at : at + int(size)], dtype)
                at += int(size)
            found[str(one["name"])] = values.reshape([int(side) for side in one["shape"]])
        return found
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RemoteError(
            f"the server's answer is not one of the Open Inference Protocol ({error}); is this the right address?"
        ) from error


def grpc_query(manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
    """A `ModelInferRequest` with the feature (n, ...) as raw bytes."""
    spec = manifest.feature
    head = _grpc_head(manifest.name, manifest.version, spec.name, feature.shape, spec.datatype)
    return Query("", {}, head + protobuf.field(_RAW_INPUT, _raw(manifest, feature)))


@lru_cache(maxsize=64)
def _grpc_head(model: str, version: str, name: str, shape: tuple[int, ...], datatype: str) -> bytes:
    tensor = protobuf.message(
        protobuf.field(_TENSOR_NAME, name),
        protobuf.field(_TENSOR_DATATYPE, datatype),
        protobuf.field(_TENSOR_SHAPE, b"".join(protobuf.varint(side) for side in shape)),
    )
    return protobuf.message(
        protobuf.field(_NAME, model), protobuf.field(_VERSION, version), protobuf.field(_INPUTS, tensor)
    )


def grpc_answer(body: bytes) -> Tensors:
    """The tensors of a `ModelInferResponse`, raw or typed.

    Raises:
        RemoteError: it is not what the protocol says.
    """
    try:
        parts, raw = [], []
        for name, value in protobuf.fields(body):
            if name == _OUTPUTS:
                parts.append(_grpc_tensor(value))
            elif name == _RAW_OUTPUT:
                raw.append(bytes(_message(value)))
        found: Tensors = {}
        for index, (name_, dtype, shape, typed) in enumerate(parts):
            data = raw[index] if raw else typed
            found[name_] = np.frombuffer(data, dtype).reshape(shape)
        return found
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise RemoteError(
            f"the server's answer is not one of the Open Inference Protocol ({error}); is this the right address?"
        ) from error


def _grpc_tensor(value: protobuf.Value) -> tuple[str, np.dtype[Any], list[int], bytes]:
    name, datatype, shape = "", "", []
    contents: memoryview | None = None
    for number, part in protobuf.fields(_message(value)):
        if number == _TENSOR_NAME:
            name = bytes(_message(part)).decode()
        elif number == _TENSOR_DATATYPE:
            datatype = bytes(_message(part)).decode()
        elif number == _TENSOR_SHAPE:
            shape += protobuf.numbers(part)
        elif number == _TENSOR_CONTENTS:
            contents = _message(part)
    dtype = _dtype(datatype)
    typed = b""
    if contents is not None:
        wanted, stored = _CONTENTS[datatype]
        for number, part in protobuf.fields(contents):
            if number == wanted and datatype == "INT64":
                typed += np.array(protobuf.numbers(part), np.uint64).astype(stored).tobytes()
            elif number == wanted:
                typed += bytes(_message(part))
    return name, dtype, shape, typed


def _raw(manifest: Manifest, feature: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(feature, dtype_of(manifest.feature.datatype)).tobytes()


def _dtype(datatype: Any) -> np.dtype[Any]:
    if datatype not in _DATATYPES:
        raise ValueError(f"a tensor of {datatype}")
    return dtype_of(datatype)


def _message(value: protobuf.Value) -> memoryview:
    if isinstance(value, int):
        raise protobuf.WireError("a number stands where a message belongs")
    return value
