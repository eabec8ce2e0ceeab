"""The bodies of REST, for the OpenAPI description; the code that reads and writes them is `codec`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["INFER_BODY", "INFER_HEADERS", "Error", "InferResponse", "Live", "ModelMetadata", "ModelReady", "Ready"]

Datatype = Literal["FP32", "UINT8", "UINT16", "INT64"]


class Error(BaseModel):
    """Why there is no answer."""

    error: str


class Live(BaseModel):
    """The process answers."""

    live: bool


class Ready(BaseModel):
    """Requests are welcome."""

    ready: bool


class ModelReady(BaseModel):
    """A model takes requests."""

    name: str
    ready: bool


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor; -1 stands for any number of rows."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class RequestInput(BaseModel):
    """A tensor of a request: `data` as a flat or nested list, or `parameters.binary_data_size`."""

    model_config = ConfigDict(extra="allow")

    name: str
    shape: list[Annotated[int, Field(ge=1)]]
    datatype: Datatype
    parameters: dict[str, Any] = {}
    data: list[float] = []


class RequestOutput(BaseModel):
    """An output to be sent; `parameters.binary_data` asks for bytes."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequestBody(BaseModel):
    """An inference request."""

    model_config = ConfigDict(extra="allow")

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[RequestInput]
    outputs: list[RequestOutput] = []


class ResponseOutput(BaseModel):
    """An output: `data`, or `parameters.binary_data_size` and bytes behind the JSON part."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, int] = {}
    data: list[float] = []


class InferResponse(BaseModel):
    """An answer."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[ResponseOutput]


def _inlined() -> dict[str, Any]:
    """The request's schema without references, as FastAPI takes it for a body that it does not read itself."""
    schema = InferRequestBody.model_json_schema()
    parts = schema.pop("$defs")

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(parts[value["$ref"].rsplit("/", 1)[-1]])
            return {key: resolve(part) for key, part in value.items()}
        return [resolve(part) for part in value] if isinstance(value, list) else value

    return resolve(schema)


INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": _inlined()},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
INFER_HEADERS: list[dict[str, Any]] = [
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "bytes of the JSON part, where binary tensors follow it",
        "schema": {"type": "integer", "minimum": 1},
    }
]
