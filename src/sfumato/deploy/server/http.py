"""uvicorn with limits that it does not have: on the time of a request, on connections, on the TLS handshake."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Generator, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sfumato.deploy.server.settings import ServeConfig

__all__ = ["RestServer"]

_LARGEST_HEAD = 64 << 10
_KEEP_ALIVE = 75
_FRESH, _IDLE = 2.0, 0.25  # seconds that a connection is left open at the end for a request on its way


class RestServer(uvicorn.Server):
    """Serves an ASGI application on a bound socket until `should_exit` is set; leaves signals alone.

    Args:
        app: the application.
        config: limits and timeouts.
        context: TLS, or None.
    """

    def __init__(self, app: Any, config: ServeConfig, context: Any = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(config),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(config.shutdown_seconds)),
            )
        )
        self._context = context
        self._handshake = None if context is None else config.client_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Unlike uvicorn's own, with a limit on the TLS handshake."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=sock,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake,
                backlog=self.config.backlog,
            )
            for sock in sockets or []
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the sockets. Unlike uvicorn's own, not on those who have connected and wait to be accepted."""
        waiting = [connection for sock in sockets or [] for connection in _accept_all(sock)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(
                    self._protocol, connection, ssl=self._context, ssl_handshake_timeout=self._handshake
                )
        await super().shutdown(sockets)

    def _protocol(self) -> Any:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The service has its own handlers."""
        yield


def _accept_all(sock: socket.socket) -> Iterator[socket.socket]:
    sock.setblocking(False)
    while True:
        try:
            connection, _ = sock.accept()
        except OSError:  # nobody is left
            return
        yield connection


class _AtOnce:
    """A transport that sends head and body of a response together: one system call, and the client wakes up once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send with whatever else comes in this turn of the loop."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is left, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            self._transport.write(data)


def _protocol(config: ServeConfig) -> type[HttpToolsProtocol]:
    """A protocol class with this configuration's limits."""

    class Limited(HttpToolsProtocol):
        """One connection. A request has to come within a time, and its head within a size."""

        timer: asyncio.TimerHandle | None = None
        head_size = 0
        in_head = False
        ending = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_AtOnce(transport, self.loop))  # type: ignore[arg-type]
            if len(self.connections) > 2 * config.max_connections:
                transport.abort()
            self._await_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._request_is_here()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self._await_request()  # the next one, or the rest of a body that nobody reads
            before = self.in_head
            super().data_received(data)
            if before and self.in_head:
                self.head_size += len(data)
                if self.head_size > _LARGEST_HEAD:
                    self._refuse(431, "the head of the request is too large")

        def on_message_begin(self) -> None:
            self.in_head, self.head_size = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.in_head = False
            super().on_headers_complete()
            if self.ending:
                self.cycle.keep_alive = False

        def on_message_complete(self) -> None:
            self._request_is_here()
            super().on_message_complete()

        def shutdown(self) -> None:
            """Finish the request at hand; where there is none, one may be on its way, and gets a moment."""
            self.ending = True
            if self.cycle is None:  # who has just connected is about to ask
                self.loop.call_later(_FRESH, self._end_if_idle)
            elif self.cycle.response_complete:
                self.loop.call_later(_IDLE, self._end_if_idle)
            else:
                self.cycle.keep_alive = False

        def _end_if_idle(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is not a valid HTTP request")

        def _refuse(self, status: int, sentence: str) -> None:
            if self.transport.is_closing():
                return
            body = json.dumps({"error": sentence}).encode()
            head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

        def _await_request(self) -> None:
            if self.timer is None:
                self.timer = self.loop.call_later(config.client_timeout, self._request_is_late)

        def _request_is_here(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _request_is_late(self) -> None:
            self.timer = None
            if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
                self.transport.close()
            else:  # whoever waits for the body hears that the connection is gone
                self._refuse(408, f"the request did not come within {config.client_timeout:g} seconds")

    return Limited
