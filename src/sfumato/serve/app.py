"""The protocol over HTTP as an ASGI application: paths, tokens, bodies, answers, and the books about every request."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec

from sfumato import __version__
from sfumato.serve.codec import BINARY_HEADER, read_request, write_answer
from sfumato.serve.core import Core, Model
from sfumato.serve.door import GUEST, Guest
from sfumato.serve.errors import Refusal

__all__ = ["App"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]
Reply = tuple[int, bytes, Headers]

_JSON = ((b"content-type", b"application/json"),)
_BINARY = ((b"content-type", b"application/octet-stream"),)
_CLOSE = ((b"connection", b"close"),)
_DIGITS = 20  # of a length that makes sense
_PARSE_ASIDE = 64 << 10  # bytes of JSON from which parsing would hold up the event loop
_SMALL = 16 << 10  # bytes of a body or an answer that are not counted
_PIECE = 64 << 10  # bytes of an answer that are given to the server at once
_ONCE = (b"host", b"authorization", BINARY_HEADER)  # of two different ones a proxy may have judged the other
_PLAIN = {b"content-encoding": b"identity", b"transfer-encoding": b"chunked"}
# Balancers and orchestrators probe these without a token; they tell nothing but yes or no.
_OPEN = ("/v2/health/live", "/v2/health/ready")
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

_FAILED = Refusal("internal", "the server failed on this request")


class App:
    """Answers the requests of one worker."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._held: dict[Guest, int] = {}  # bytes of bodies and answers, in the order in which they began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        guest = GUEST.get()
        if scope["type"] != "http" or guest is None:
            return
        try:
            try:
                if scope["method"] != "POST":
                    guest.work()
                self._authorise(scope)
                path = scope["path"].rstrip("/")
                if scope["method"] == "POST" and (named := _INFER.fullmatch(path)):
                    reply = await self._infer(scope, receive, guest, named[1], named[2] or "")
                else:
                    reply = self._look_up(scope["method"], path)
            except Refusal as refusal:
                if refusal.reason in ("stalled", "gone"):
                    return
                reply = _refused(refusal)
            except Exception as error:
                self._core.log.failure(error)
                reply = _refused(_FAILED)
            guest.answer()
            await self._answer(reply, scope, receive, send, guest)
        except Exception as error:  # nothing we send should fail; if it does, the log has to say so
            self._core.log.failure(error)
            raise
        finally:
            self._held.pop(guest, None)
            guest.rest()

    def _authorise(self, scope: Scope) -> None:
        given = dict(scope["headers"])
        try:
            for once in _ONCE:
                if once in given and sum(name == once for name, _ in scope["headers"]) > 1:
                    raise Refusal("invalid", f"the request has more than one {once.decode().title()} header; send one")
            if scope["path"].rstrip("/") not in _OPEN:
                self._core.tokens.check(given.get(b"authorization", b""))
        except Refusal as refusal:
            self._core.metrics.rejections.labels(refusal.reason).inc()
            raise

    def _look_up(self, method: str, path: str) -> Reply:
        """Everything but inference."""
        core = self._core
        status = 200
        match path.split("/")[1:]:
            case ["v2"]:
                answer: Any = {"name": "sfumato", "version": __version__, "extensions": ["binary_tensor_data"]}
            case ["v2", "health", "live"]:
                answer = {"live": True}
            case ["v2", "health", "ready"]:
                answer, status = {"ready": core.ready}, 200 if core.ready else 503
            case ["metrics"]:
                answer = core.metrics.render()
            case ["openapi.json"]:
                answer = _description()
            case ["v2", "models", name] | ["v2", "models", name, "versions", _] as parts:
                answer = core.metadata(name, parts[4] if len(parts) > 3 else "")
            case ["v2", "models", name, "ready"] | ["v2", "models", name, "versions", _, "ready"] as parts:
                core.find(name, parts[4] if len(parts) > 4 else "")
                answer, status = {"name": name, "ready": core.ready}, 200 if core.ready else 503
            case _ if _INFER.fullmatch(path):
                raise _other_method(b"POST")
            case _:
                raise Refusal("unknown", "there is no such path; the protocol's begin with /v2")
        if method not in ("GET", "HEAD"):
            raise _other_method(b"GET, HEAD")
        if isinstance(answer, tuple):
            body, kind = answer
            return status, body, ((b"content-type", kind.encode()),)
        return status, msgspec.json.encode(answer), _JSON

    async def _infer(self, scope: Scope, receive: Receive, guest: Guest, name: str, version: str) -> Reply:
        """Read, compute and write."""
        core, began = self._core, time.monotonic()
        model: Model | None = None
        refusal: Refusal | None = _FAILED
        rows = 0
        try:
            model = core.find(name, version)
            if model.batcher.full:
                raise Refusal("busy", f"{core.config.queue} requests wait already; try again a little later")
            announced, head_length = _lengths(scope["headers"])
            body = await self._body(receive, guest, announced)
            given, text = (body, head_length, model), len(body)
            if head_length is not None and head_length.isdigit():
                text = int(head_length[:_DIGITS])
            if text > _PARSE_ASIDE:
                asked = await asyncio.get_running_loop().run_in_executor(self._parser, read_request, *given)
            else:
                asked = read_request(*given)
            del given, body
            rows = len(asked.features)
            guest.work(asyncio.current_task())
            logits = await model.batcher.submit(asked.features, min(core.config.deadline_ms / 1000, asked.patience))
            guest.work()
            content, split = write_answer(asked, model, model.outputs(logits))
            self._keep(guest, len(content))
            refusal = None
        except asyncio.CancelledError:  # by the door; a thread that has not begun will not compute these rows
            refusal = Refusal("gone", "the client went away")
            raise refusal from None
        except Refusal as caught:
            refusal = caught
            raise
        finally:
            core.account(model, rows, refusal, time.monotonic() - began)
        return 200, content, _JSON if split is None else (*_BINARY, (BINARY_HEADER, b"%d" % split))

    async def _body(self, receive: Receive, guest: Guest, announced: int) -> bytes | bytearray:
        """The whole body, no longer than allowed; that it comes in time is seen to at the door."""
        most = self._core.config.max_request_bytes
        body: bytes | bytearray = b""
        guest.read()
        while announced <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal("stalled", "the client went away, or its request did not come in time")
            part = message.get("body", b"")
            if len(body) + len(part) > most:
                break
            if not body:
                body = part
            elif part:
                if isinstance(body, bytes):
                    body = bytearray(body)
                body += part
            if not message.get("more_body"):
                guest.work()
                return body
            self._keep(guest, len(part))
        raise Refusal("too_large", f"the body is larger than {most} bytes")

    def _keep(self, guest: Guest, size: int) -> None:
        """Count bytes that are held for a client. The first in line may finish; all others share half a largest body.

        Beyond that, who holds more than a little is refused.
        """
        held = self._held[guest] = self._held.get(guest, 0) + size
        first = next(iter(self._held))
        others = sum(self._held.values()) - self._held[first]
        if held > _SMALL and guest is not first and others > self._core.config.max_request_bytes // 2:
            raise Refusal("busy", "too many large requests are on their way; try again a little later")

    async def _answer(self, reply: Reply, scope: Scope, receive: Receive, send: Send, guest: Guest) -> None:
        status, body, headers = reply
        unread = scope["method"] == "POST" and guest.since is not None
        expects = any(name == b"expect" for name, _ in scope["headers"])
        if self._core.closing or (expects and unread):  # nobody asked for the body to come, so none is read
            headers += _CLOSE
        headers += ((b"content-length", b"%d" % len(body)),)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        first = 0
        while len(body) - first > _PIECE:
            await send({"type": "http.response.body", "body": body[first : first + _PIECE], "more_body": True})
            first += _PIECE
        rest = body[first:]
        if unread and not expects:
            # Who writes all of a request before reading would meet a broken connection in the place of the answer.
            await send({"type": "http.response.body", "body": rest, "more_body": True})
            rest = b""
            guest.read()
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
        await send({"type": "http.response.body", "body": rest})


def _lengths(headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes | None]:
    """What the head says of the body: its length, and that of its JSON part."""
    announced, head_length = 0, None
    for name, value in headers:
        if name == b"content-length":
            announced = int(value[:_DIGITS]) if value.isdigit() else 0
        elif name in _PLAIN and value.strip().lower() != _PLAIN[name]:
            raise Refusal("unsupported", "compressed bodies are not taken; send the body as it is")
        elif name == BINARY_HEADER:
            head_length = value
    return announced, head_length


def _refused(refusal: Refusal) -> Reply:
    """The protocol's error body with the status that belongs to the reason."""
    return refusal.status, msgspec.json.encode({"error": refusal.sentence}), (*_JSON, *refusal.headers)


def _other_method(allowed: bytes) -> Refusal:
    return Refusal("method", "this path does not take this method", ((b"allow", allowed),))


@lru_cache(maxsize=1)
def _description() -> tuple[bytes, str]:
    return files("sfumato.serve").joinpath("openapi.json").read_bytes(), "application/json"
