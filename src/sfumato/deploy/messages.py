"""Queries and answers of the Open Inference Protocol as bytes: JSON with binary tensors behind it.

A query is encoded once. Whatever happens on the way, what is sent again are these bytes, never new noise.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.release import dtype_of
from sfumato.errors import RemoteError

__all__ = ["HEADER", "Query", "Tensors", "http_answer", "http_query"]

HEADER = "Inference-Header-Content-Length"

Tensors = dict[str, npt.NDArray[Any]]

_DATATYPES = ("FP32", "INT64")


@dataclass(frozen=True)
class Query:
    """One request, ready to be sent as often as it takes.

    Attributes:
        path: of the HTTP request.
        headers: of the HTTP request.
        body: the bytes.
        id: random, to be given back by the answer.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    id: str


def http_query(manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
    """A POST of the feature (n, ...) with its bytes behind the JSON."""
    raw = np.ascontiguousarray(feature, dtype_of(manifest.feature.datatype)).tobytes()
    name = os.urandom(16).hex()
    head = b'{"id":"%s",%s' % (
        name.encode(),
        _head(manifest.feature.name, feature.shape, manifest.feature.datatype, len(raw)),
    )
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
    return Query(f"/v2/models/{manifest.name}/versions/{manifest.version}/infer", headers, head + raw, name)


@lru_cache(maxsize=64)  # a device asks the same question about one image after the other
def _head(name: str, shape: tuple[int, ...], datatype: str, size: int) -> bytes:
    """The JSON without its first brace."""
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(asked, separators=(",", ":"))[1:].encode()


def http_answer(headers: Mapping[str, str], body: bytes, query: Query) -> Tensors:
    """The tensors of a response to a query, binary or JSON.

    Raises:
        RemoteError: it is not what the protocol says, or answers another query.
    """
    try:
        length = next((int(value) for name, value in headers.items() if name.lower() == HEADER.lower()), len(body))
        if not 0 <= length <= len(body):
            raise ValueError("its header is longer than the answer")
        head = json.loads(body[:length])
        outputs, told = head["outputs"], head.get("id")
        found: Tensors = {}
        at = length
        for output in outputs:
            if output["datatype"] not in _DATATYPES:
                raise ValueError(f"a tensor of {output['datatype']}")
            dtype = dtype_of(output["datatype"])
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.array(output["data"], dtype)
            else:
                values = np.frombuffer(body[at : at + int(size)], dtype)
                at += int(size)
            found[str(output["name"])] = values.reshape([int(side) for side in output["shape"]])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RemoteError(
            f"the server's answer is not one of the Open Inference Protocol ({str(error)[:200]}); is this the right "
            "address?"
        ) from error
    if told != query.id:
        raise RemoteError(
            "the server's answer carries the id of another query, or none, so it was not taken; is a proxy in between "
            "that keeps answers?"
        )
    return found
