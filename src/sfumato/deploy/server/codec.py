"""An inference request of REST, read from its body, and its answer written: JSON, with binary tensors behind it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sfumato.deploy.server.batching import patience_of
from sfumato.deploy.server.model import Model
from sfumato.deploy.server.refusals import INVALID, Refusal
from sfumato.deploy.server.tensors import to_bytes

__all__ = ["BINARY_HEADER", "InferRequest", "read_request", "write_answer"]

BINARY_HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class InferRequest:
    """What a body asks.

    Attributes:
        features: the checked input.
        outputs: names of the outputs to send.
        binary: those of them that are sent as bytes.
        id: to be given back; None where the request has none.
        patience: seconds, or None.
    """

    features: NDArray[Any]
    outputs: list[str]
    binary: set[str] = field(default_factory=set)
    id: str | None = None
    patience: float | None = None


def read_request(body: bytes, header_length: bytes | None, model: Model) -> InferRequest:
    """Read and check a whole body.

    Raises:
        Refusal: INVALID, with what is wrong.
    """
    head, binary = _divide(body, header_length)
    request = _object(_parse(head), "the request")
    parameters = _object(request.get("parameters", {}), "'parameters'")
    name = request.get("id")
    if name is not None and not isinstance(name, str):
        raise Refusal(INVALID, "the request's 'id' is not a text")
    inputs = _objects(request.get("inputs"), "'inputs'")
    if len(inputs) != 1:
        raise Refusal(INVALID, f"the model has one input; the request has {len(inputs)}")
    features = _features(inputs[0], binary, model)
    asked = _objects(request.get("outputs", []), "'outputs'")
    if any(not isinstance(output.get("name"), str) for output in asked):
        raise Refusal(INVALID, "an entry of 'outputs' has no name")
    outputs = model.pick([output["name"] for output in asked])
    all_binary = _flag(parameters, "binary_data_output", False)
    as_bytes = set(outputs) if all_binary else set()
    for output in asked:
        own = _object(output.get("parameters", {}), "'parameters'")
        if "classification" in own:
            raise Refusal(
                INVALID, "the parameter 'classification' is not supported; the outputs are those of the metadata"
            )
        (as_bytes.add if _flag(own, "binary_data", all_binary) else as_bytes.discard)(output["name"])
    return InferRequest(features, outputs, as_bytes, name, patience_of(parameters.get("timeout")))


def write_answer(
    request: InferRequest, model: Model, values: dict[str, NDArray[np.generic]]
) -> tuple[bytes, int | None]:
    """The body of the answer and the length of its JSON part where bytes follow it."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor in model.reveal.tensors:
        if tensor.name not in request.outputs:
            continue
        array = values[tensor.name]
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if tensor.name in request.binary:
            parts.append(to_bytes(array))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    head = orjson.dumps(answer | {"outputs": outputs})
    return (head, None) if not parts else (b"".join([head, *parts]), len(head))


def _divide(body: bytes, header_length: bytes | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isdigit() or len(header_length) > 12 or not 0 < int(header_length) <= len(body):
        raise Refusal(INVALID, "Inference-Header-Content-Length is not a length of this body's JSON part")
    size = int(header_length)
    return body[:size], memoryview(body)[size:]


def _parse(head: bytes) -> Any:
    try:
        return orjson.loads(head)
    except orjson.JSONDecodeError:
        raise Refusal(
            INVALID, "the request is not valid JSON (UTF-8, without NaN, Infinity and numbers beyond FP64)"
        ) from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal(INVALID, f"{what} is not a JSON object")
    return value


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise Refusal(INVALID, f"{what} is not a list of JSON objects")
    return value


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(INVALID, f"the parameter '{name}' is not true or false")
    return value


def _features(given: dict[str, Any], binary: memoryview, model: Model) -> NDArray[Any]:
    reader = model.reader
    rows = reader.check(given.get("name"), given.get("datatype"), given.get("shape"))
    size = _object(given.get("parameters", {}), "'parameters'").get("binary_data_size")
    if size is None:
        if len(binary):
            raise Refusal(INVALID, "bytes follow the JSON part, but no input has a 'binary_data_size'")
        return reader.from_values(given.get("data"), rows)
    if "data" in given:
        raise Refusal(INVALID, f"input '{reader.name}' has both 'data' and 'binary_data_size'; give one of them")
    if size != len(binary) or type(size) is not int:
        raise Refusal(INVALID, f"'binary_data_size' differs from the {len(binary)} bytes behind the JSON part")
    # A copy begins at an aligned address, a view would begin wherever the JSON part ends.
    return reader.from_bytes(bytes(binary), rows)
