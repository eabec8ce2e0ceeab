"""The protocol over gRPC."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from sfumato.deploy.server.batching import patience_of
from sfumato.deploy.server.core import Account, Core
from sfumato.deploy.server.model import Model
from sfumato.deploy.server.protocol import open_inference_pb2 as pb
from sfumato.deploy.server.refusals import INTERNAL, INVALID, STALLED, Refusal
from sfumato.deploy.server.tensors import to_bytes

__all__ = ["build_grpc"]

SERVICE = "inference.GRPCInferenceService"
_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "INT64": "int64_contents"}


def build_grpc(core: Core, *, share_port: bool = False) -> Any:
    """A gRPC server with the protocol's service and no port yet."""
    config = core.config
    server = grpc.aio.server(
        maximum_concurrent_rpcs=config.max_connections,
        options=[
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", config.max_connections),
            ("grpc.max_metadata_size", 64 << 10),
            ("grpc.server_handshake_timeout_ms", round(1000 * config.client_timeout)),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.so_reuseport", int(share_port)),
        ],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _Service(core).handlers()),))
    return server


class _Service:
    """The six calls."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def handlers(self) -> dict[str, Any]:
        """By name. A call is read as a stream of one message (the same on the wire), so that waiting for it can end."""
        calls: dict[str, tuple[Any, Callable[..., Awaitable[Any]]]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": (pb.ModelInferRequest, self._model_infer),
        }
        return {
            name: grpc.stream_unary_rpc_method_handler(self._guarded(name, message, answer))
            for name, (message, answer) in calls.items()
        }

    def _guarded(self, name: str, message: Any, answer: Callable[..., Awaitable[Any]]) -> Any:
        """Tokens, waiting, parsing, and every error as a status."""
        core = self._core
        books = name == "ModelInfer"
        open_to_all = name in ("ServerLive", "ServerReady")

        async def call(_: Any, context: Any) -> bytes:
            account = Account(core, "grpc")
            try:
                if not open_to_all:
                    core.tokens.check(dict(context.invocation_metadata() or ()).get("authorization"))
                request = _parsed(message, await self._message(context))
                reply: bytes = (await answer(request, context, account)).SerializeToString()
            except Refusal as refusal:
                if books:
                    account.close(refusal.reason.grpc, refusal)
                await context.abort(getattr(grpc.StatusCode, refusal.reason.grpc), refusal.sentence)
                raise AssertionError from None  # abort raises
            except Exception as error:
                core.log.failure(error)
                if books:
                    account.close("INTERNAL", Refusal(INTERNAL, ""))
                await context.abort(grpc.StatusCode.INTERNAL, "the server failed on this request")
                raise AssertionError from None
            if books:
                account.close("OK")
            return reply

        return call

    async def _message(self, context: Any) -> bytes:
        seconds = self._core.config.client_timeout
        try:
            async with asyncio.timeout(seconds):
                data = await context.read()
        except TimeoutError:
            raise Refusal(STALLED, f"the message did not come within {seconds:g} seconds") from None
        if not isinstance(data, bytes):  # grpc.aio.EOF
            raise Refusal(INVALID, "the call holds no message")
        return data

    async def _server_live(self, _: Any, __: Any, ___: Account) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _: Any, __: Any, ___: Account) -> Any:
        return pb.ServerReadyResponse(ready=self._core.ready)

    async def _model_ready(self, request: Any, _: Any, __: Account) -> Any:
        self._core.models.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._core.ready)

    async def _server_metadata(self, _: Any, __: Any, ___: Account) -> Any:
        return pb.ServerMetadataResponse(**self._core.server_metadata())

    async def _model_metadata(self, request: Any, _: Any, __: Account) -> Any:
        values = self._core.model_metadata(request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        for part in ("inputs", "outputs"):
            values[part] = [tensor(**described) for described in values[part]]
        return pb.ModelMetadataResponse(**values)

    async def _model_infer(self, request: Any, context: Any, account: Account) -> Any:
        account.served = served = self._core.find(request.model_name, request.model_version)
        model = served.model
        if len(request.inputs) != 1:
            raise Refusal(INVALID, f"the model has one input; the request has {len(request.inputs)}")
        features = _features(request, model)
        account.rows = len(features)
        names = model.pick([output.name for output in request.outputs])
        values = await self._core.infer(served, features, _patience(request, context))
        reply = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        for tensor in model.reveal.tensors:
            if tensor.name not in names:
                continue
            array = values[tensor.name]
            output = reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
            if request.raw_input_contents:
                reply.raw_output_contents.append(to_bytes(array))
            else:
                getattr(output.contents, _CONTENTS[tensor.datatype]).extend(array.ravel().tolist())
        return reply


def _parsed(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError:
        raise Refusal(INVALID, "the message is not one of the protocol") from None


def _features(request: Any, model: Model) -> Any:
    given, reader = request.inputs[0], model.reader
    rows = reader.check(given.name, given.datatype, list(given.shape))
    raw = request.raw_input_contents
    if raw:
        if given.HasField("contents"):
            raise Refusal(INVALID, f"input '{reader.name}' has both contents and raw_input_contents; give one of them")
        if len(raw) != 1:
            raise Refusal(INVALID, f"the request has one input and {len(raw)} raw_input_contents")
        return reader.from_bytes(raw[0], rows)
    wanted = _CONTENTS[reader.datatype]
    if any(field.name != wanted for field, _ in given.contents.ListFields()):
        raise Refusal(INVALID, f"values of {reader.datatype} belong into {wanted}")
    values = getattr(given.contents, wanted)
    return reader.from_values(np.asarray(values, np.float32 if reader.datatype == "FP32" else np.uint32), rows)


def _patience(request: Any, context: Any) -> float | None:
    """The smaller of the request's `timeout` and the call's own deadline."""
    given = request.parameters.get("timeout") if "timeout" in request.parameters else None
    kind = None if given is None else given.WhichOneof("parameter_choice")
    asked = patience_of(None if given is None else getattr(given, kind) if kind else "")
    deadline = context.time_remaining()
    return min((value for value in (asked, deadline) if value is not None), default=None)
