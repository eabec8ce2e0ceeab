"""Inference over HTTP, from a request's head to its answer: the path that is as short as we can make it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Response

from sfumato.deploy.server.codec import BINARY_HEADER, InferRequest, read_request, write_answer
from sfumato.deploy.server.core import Account, Core
from sfumato.deploy.server.http_errors import refused
from sfumato.deploy.server.refusals import STALLED, TOO_LARGE, UNSUPPORTED, Refusal
from sfumato.deploy.server.repository import Served

__all__ = ["Inference", "Receive", "Scope"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_PARSE_ASIDE = 64 << 10  # bytes of JSON from which parsing would hold up the event loop
_BINARY_HEADER = BINARY_HEADER.encode()


class Inference:
    """Answers the inference requests of a worker."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")

    async def answer(self, scope: Scope, receive: Receive, model: str, version: str) -> Response:
        """The response to one request: the outputs, or the error that the protocol has for what was wrong.

        Args:
            scope: of ASGI.
            receive: of ASGI; gives the body.
            model: name, from the path.
            version: from the path; empty for the newest.
        """
        account = Account(self._core, "rest")
        try:
            response = await self._infer(scope, receive, model, version, account)
        except Refusal as refusal:
            account.close(str(refusal.reason.http), refusal)
            return refused(refusal)
        account.close("200")
        return response

    async def _infer(self, scope: Scope, receive: Receive, name: str, version: str, account: Account) -> Response:
        core = self._core
        account.served = served = core.find(name, version)
        headers = dict(reversed(scope["headers"]))  # where a header comes twice, its first value is taken
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refusal(UNSUPPORTED, "compressed bodies are not taken; send the body as it is")
        announced = headers.get(b"content-length", b"0")
        body = await _body(receive, announced, core.config.max_request_bytes)
        asked = await self._read(body, headers.get(_BINARY_HEADER), served)
        del body
        account.rows = len(asked.features)
        values = await core.infer(served, asked.features, asked.patience)
        content, head_length = write_answer(asked, served.model, values)
        if head_length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={BINARY_HEADER: str(head_length)}, media_type="application/octet-stream")

    async def _read(self, body: bytes, head_length: bytes | None, served: Served) -> InferRequest:
        if head_length is None and len(body) > _PARSE_ASIDE:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._parser, read_request, body, head_length, served.model)
        return read_request(body, head_length, served.model)


async def _body(receive: Receive, announced: bytes, most: int) -> bytes:
    """The whole body, no longer than allowed; that it comes in time is seen to where the connection is."""
    too_large = Refusal(TOO_LARGE, f"the body is larger than {most} bytes")
    if not announced.isdigit() or int(announced[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(STALLED, "the client went away, or its request did not come in time")
        if part := message.get("body", b""):
            size += len(part)
            if size > most:
                raise too_large
            parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
