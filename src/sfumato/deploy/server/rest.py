"""The protocol over HTTP as a FastAPI application: every endpoint, and their description."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sfumato import __version__
from sfumato.deploy.server import schemas
from sfumato.deploy.server.core import Core
from sfumato.deploy.server.describe import describe_models
from sfumato.deploy.server.http_errors import refused
from sfumato.deploy.server.inference import Inference
from sfumato.deploy.server.refusals import FORBIDDEN_METHOD, INTERNAL, INVALID, UNKNOWN, Refusal

__all__ = ["build_app"]

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error} for status in (400, 401, 404, 405, 408, 413, 415, 429, 500, 503)
}


def build_app(core: Core, inference: Inference) -> FastAPI:
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
    _add_inference(app, inference)
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


def _add_inference(app: FastAPI, inference: Inference) -> None:
    """For the description, and for other methods' refusal; the gate answers these requests before they come here."""
    described: dict[str, Any] = {"requestBody": schemas.INFER_BODY, "parameters": schemas.INFER_HEADERS}

    @app.post("/v2/models/{model}/infer", response_model=schemas.InferResponse, openapi_extra=described)
    async def infer(model: str, request: Request) -> Response:
        return await inference.answer(request.scope, request.receive, model, "")

    @app.post(
        "/v2/models/{model}/versions/{version}/infer",
        response_model=schemas.InferResponse,
        openapi_extra=described,
    )
    async def infer_version(model: str, version: str, request: Request) -> Response:
        return await inference.answer(request.scope, request.receive, model, version)
