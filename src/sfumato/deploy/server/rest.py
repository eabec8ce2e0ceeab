"""The protocol over HTTP: a FastAPI application, and around it what every request passes through."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sfumato import __version__
from sfumato.deploy.server import schemas
from sfumato.deploy.server.codec import BINARY_HEADER, InferRequest, read_request, write_answer
from sfumato.deploy.server.core import Account, Core
from sfumato.deploy.server.describe import describe_models
from sfumato.deploy.server.refusals import (
    BUSY,
    FORBIDDEN_METHOD,
    INTERNAL,
    INVALID,
    STALLED,
    TOO_LARGE,
    UNKNOWN,
    UNSUPPORTED,
    Reason,
    Refusal,
)
from sfumato.deploy.server.repository import Served

__all__ = ["Gate", "build_app"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Balancers and orchestrators probe these without a token; they tell nothing but yes or no.
_OPEN = {"/v2/health/live", "/v2/health/ready"}
_PARSE_ASIDE = 64 << 10  # bytes of JSON from which parsing would hold up the event loop
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error} for status in (400, 401, 404, 405, 408, 413, 415, 429, 500, 503)
}
_INFER = "/infer"


def build_app(core: Core) -> FastAPI:
    """The application with every endpoint of the protocol and `/metrics`; to be wrapped in a `Gate`."""
    app = FastAPI(
        title="Sfumato",
        version=__version__,
        summary="Open Inference Protocol 2 for decoders of split models",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_REFUSALS,
    )
    _add_health(app, core)
    _add_metadata(app, core)
    _add_inference(app, core)
    plain = app.openapi

    def described() -> dict[str, Any]:  # made anew for every reader: a reload may have changed the models
        return describe_models(plain(), core.models.all())

    app.openapi = described  # type: ignore[method-assign]

    @app.exception_handler(HTTPException)
    async def of_routing(_: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            reason, sentence = FORBIDDEN_METHOD, "this path does not take this method"
        else:
            reason, sentence = UNKNOWN, "there is no such path; the protocol's begin with /v2"
        return refused(Refusal(reason, sentence), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def of_values(_: Request, __: RequestValidationError) -> Response:
        return refused(Refusal(INVALID, "a parameter of the request is not valid"))

    @app.exception_handler(Exception)  # the answer; the gate hears of the error as well, and logs it
    async def of_nobody(_: Request, __: Exception) -> Response:
        return refused(Refusal(INTERNAL, "the server failed on this request"))

    @app.exception_handler(Refusal)
    async def of_ours(_: Request, refusal: Refusal) -> Response:
        return refused(refusal)

    return app


def _add_health(app: FastAPI, core: Core) -> None:
    @app.get("/v2/health/live", response_model=schemas.Live)
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
    async def ready() -> Response:
        return JSONResponse({"ready": core.ready}, 200 if core.ready else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        body, content_type = core.metrics.render()
        return Response(body, headers={"content-type": content_type})


def _add_metadata(app: FastAPI, core: Core) -> None:
    @app.get("/v2", response_model=schemas.ServerMetadata)
    async def server_metadata() -> Response:
        return JSONResponse(core.server_metadata())

    @app.get("/v2/models/{model}", response_model=schemas.ModelMetadata)
    async def model_metadata(model: str) -> Response:
        return JSONResponse(core.model_metadata(model))

    @app.get("/v2/models/{model}/versions/{version}", response_model=schemas.ModelMetadata)
    async def version_metadata(model: str, version: str) -> Response:
        return JSONResponse(core.model_metadata(model, version))

    @app.get(
        "/v2/models/{model}/ready", response_model=schemas.ModelReady, responses={503: {"model": schemas.ModelReady}}
    )
    async def model_ready(model: str) -> Response:
        return _model_ready(core, model)

    @app.get(
        "/v2/models/{model}/versions/{version}/ready",
        response_model=schemas.ModelReady,
        responses={503: {"model": schemas.ModelReady}},
    )
    async def version_ready(model: str, version: str) -> Response:
        return _model_ready(core, model, version)


def _model_ready(core: Core, name: str, version: str = "") -> Response:
    core.models.find(name, version)
    return JSONResponse({"name": name, "ready": core.ready}, 200 if core.ready else 503)


def _add_inference(app: FastAPI, core: Core) -> None:
    inference = _Inference(core)
    described: dict[str, Any] = {"requestBody": schemas.INFER_BODY, "parameters": schemas.INFER_HEADERS}

    @app.post(f"/v2/models/{{model}}{_INFER}", response_model=schemas.InferResponse, openapi_extra=described)
    async def infer(model: str, request: Request) -> Response:
        return await inference(request, model, "")

    @app.post(
        f"/v2/models/{{model}}/versions/{{version}}{_INFER}",
        response_model=schemas.InferResponse,
        openapi_extra=described,
    )
    async def infer_version(model: str, version: str, request: Request) -> Response:
        return await inference(request, model, version)


class _Inference:
    """One inference request after the other, from its head to its answer."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")

    async def __call__(self, request: Request, model: str, version: str) -> Response:
        account = Account(self._core, "rest")
        try:
            response = await self._answer(request, model, version, account)
        except Refusal as refusal:
            account.close(str(refusal.reason.http), refusal)
            return refused(refusal)
        account.close("200")
        return response

    async def _answer(self, request: Request, name: str, version: str, account: Account) -> Response:
        core = self._core
        account.served = served = core.find(name, version)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refusal(UNSUPPORTED, "compressed bodies are not taken; send the body as it is")
        body = await _body(request, core.config.max_request_bytes, core.config.client_timeout)
        asked = await self._read(body, request, served)
        del body
        account.rows = len(asked.features)
        values = await core.infer(served, asked.features, asked.patience)
        content, head_length = write_answer(asked, served.model, values)
        if head_length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={BINARY_HEADER: str(head_length)}, media_type="application/octet-stream")

    async def _read(self, body: bytes, request: Request, served: Served) -> InferRequest:
        given = request.headers.get(BINARY_HEADER)
        head_length = None if given is None else given.encode("latin-1")
        if head_length is None and len(body) > _PARSE_ASIDE:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._parser, read_request, body, head_length, served.model)
        return read_request(body, head_length, served.model)


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """The whole body, no longer and no later than allowed."""
    announced = request.headers.get("content-length", "0")
    too_large = Refusal(TOO_LARGE, f"the body is larger than {most} bytes")
    if not announced.isdigit() or int(announced[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(STALLED, "the client went away")
                if part := message.get("body", b""):
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
                if not message.get("more_body"):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise Refusal(STALLED, f"the body did not come within {seconds:g} seconds") from None


def refused(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    """The protocol's error body with the status that belongs to the reason."""
    reason: Reason = refusal.reason
    headers = dict(headers or {})
    if reason.retry:
        headers["retry-after"] = "1"
    if reason.http == 401:
        headers["www-authenticate"] = "Bearer"
    if reason is STALLED:
        headers["connection"] = "close"
    return JSONResponse({"error": refusal.sentence}, reason.http, headers)


class Gate:
    """Every request passes here: the connections are counted, tokens checked, unforeseen errors caught.

    Args:
        app: what is behind the gate.
        core: tokens, limits and logs.
        connections: how many connections there are now.
    """

    def __init__(self, app: Any, core: Core, connections: Callable[[], int]) -> None:
        self._app = app
        self._core = core
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return
        started = False
        closing = not self._core.ready

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if closing:  # the client looks for another server before this one closes its connection
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            self._core.metrics.rejections.labels("rest", refusal.reason.name).inc()
            await refused(refusal)(scope, receive, watched)
            return
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            self._core.log.failure(error)
            if not started:
                await refused(Refusal(INTERNAL, "the server failed on this request"))(scope, receive, watched)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if self._connections() > self._core.config.max_connections:
            return Refusal(BUSY, "too many connections are open; try again a little later")
        if scope["path"] in _OPEN:
            return None
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        try:
            self._core.tokens.check(header)
        except Refusal as refusal:
            return refusal
        return None
