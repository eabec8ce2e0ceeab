"""What every HTTP request passes through, and where inference leaves the road that all others take."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sfumato.deploy.server.core import Core
from sfumato.deploy.server.http_errors import refused
from sfumato.deploy.server.inference import Inference, Receive, Scope
from sfumato.deploy.server.refusals import BUSY, INTERNAL, Refusal

__all__ = ["Gate"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Balancers and orchestrators probe these without a token; they tell nothing but yes or no.
_OPEN = {"/v2/health/live", "/v2/health/ready"}
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class Gate:
    """Every request passes here: the connections are counted, tokens checked, unforeseen errors caught.

    Inference does not go on through the application's middleware and routes, which took two fifths of the server's time
    for one request of a small network.

    Args:
        app: what answers everything but inference.
        inference: what answers inference.
        core: tokens, limits and logs.
        connections: how many connections there are now.
    """

    def __init__(self, app: Any, inference: Inference, core: Core, connections: Callable[[], int]) -> None:
        self._app = app
        self._inference = inference
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
            named = _INFER.fullmatch(scope["path"]) if scope["method"] == "POST" else None
            if named is None:
                await self._app(scope, receive, watched)
            else:
                response = await self._inference.answer(scope, receive, named[1], named[2] or "")
                await response(scope, receive, watched)
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
