"""The OpenAPI description of what is served now: names, shapes and ranges of the models, with a request that works.

JSON Schema cannot say that the values are as many as the shape asks for. For a few rows it is spelt out, for more of
them, nested lists and binary data it is left open.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.deploy.server.model import Model

__all__ = ["describe_models"]

_LARGEST = float(np.finfo(np.float32).max)
_EXACT = 4  # rows that the description spells out
_LONGEST_EXAMPLE = 4096  # values; a longer request is no help to a reader


def describe_models(document: dict[str, Any], models: Sequence[Model]) -> dict[str, Any]:
    """A copy of the application's OpenAPI document that names the models and their bodies.

    Args:
        document: as FastAPI makes it.
        models: what is served.
    """
    names = list(dict.fromkeys(model.name for model in models))
    versions = list(dict.fromkeys(model.version for model in models))
    paths = {}
    for path, methods in document["paths"].items():
        paths[path] = {method: dict(operation) for method, operation in methods.items()}
        for operation in paths[path].values():
            known = {"model": names, "version": versions}
            operation["parameters"] = [_named(one, known) for one in operation.get("parameters", ())]
            if "requestBody" in operation:
                content = dict(operation["requestBody"]["content"])
                content["application/json"] = {
                    "schema": {"anyOf": [_body(model) for model in models]},
                    "examples": {model.name: {"value": value} for model in models if (value := _example(model))},
                }
                operation["requestBody"] = {**operation["requestBody"], "content": content}
    return {**document, "paths": paths}


def _named(parameter: dict[str, Any], known: dict[str, list[str]]) -> dict[str, Any]:
    if parameter["in"] != "path":
        return parameter
    return {**parameter, "schema": {"type": "string", "enum": known[parameter["name"]]}}


def _body(model: Model) -> dict[str, Any]:
    outputs = [tensor.name for tensor in model.reveal.tensors]
    output = _object({"name": {"enum": outputs}, "parameters": _object({"binary_data": {"type": "boolean"}})}, "name")
    timeout = {"type": "integer", "minimum": 1, "maximum": 2**53, "description": "microseconds to wait for a thread"}
    return _object(
        {
            "id": {"type": "string"},
            "parameters": _object({"binary_data_output": {"type": "boolean"}, "timeout": timeout}),
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _input(model)},
            "outputs": {"type": "array", "maxItems": len(outputs), "uniqueItems": True, "items": output},
        },
        "inputs",
    ) | {"title": f"{model.name}, version {model.version}"}


def _input(model: Model) -> dict[str, Any]:
    reader = model.reader
    number = _number(model)
    count = math.prod(reader.shape)
    said = {"name": {"const": reader.name}, "datatype": {"const": reader.datatype}}

    def exactly(rows: int) -> dict[str, Any]:
        flat = {"type": "array", "items": number, "minItems": rows * count, "maxItems": rows * count}
        return _object({**said, "shape": {"const": [rows, *reader.shape]}, "data": flat}, *said, "shape", "data")

    sides = 1 + len(reader.shape)
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": sides, "maxItems": sides}
    data = {"type": "array", "minItems": 1, "items": {"type": ["number", "array"]}}
    size = {"type": "integer", "minimum": 1, "description": "bytes behind the JSON part, in the place of data"}
    parameters = {"type": "object", "properties": {"binary_data_size": size}}
    more = {**said, "shape": shape, "data": data, "parameters": parameters}
    general = {"type": "object", "properties": more, "required": [*said, "shape"]}
    return {"anyOf": [*(exactly(rows) for rows in range(1, min(_EXACT, reader.max_rows) + 1)), general]}


def _number(model: Model) -> dict[str, Any]:
    """A value of the feature: any float32, or the number of a level."""
    levels = model.manifest.quantization
    if levels is None:
        return {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}
    return {"type": "integer", "minimum": 0, "maximum": 2**levels.bits - 1}


def _example(model: Model) -> dict[str, Any] | None:
    reader, count = model.reader, math.prod(model.reader.shape)
    if count > _LONGEST_EXAMPLE:
        return None
    shape = [1, *reader.shape]
    return {"inputs": [{"name": reader.name, "datatype": reader.datatype, "shape": shape, "data": [0] * count}]}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
