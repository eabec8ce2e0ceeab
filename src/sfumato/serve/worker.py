"""One worker: uvicorn as it is behind a door, from the first accepted connection to the last answer."""

import asyncio
import socket
from typing import Any

from sfumato.serve.app import App
from sfumato.serve.core import Core
from sfumato.serve.door import Door
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log, silence_libraries
from sfumato.serve.settings import ServeConfig
from sfumato.serve.telemetry import traced

__all__ = ["Worker"]

_KEEP_ALIVE = 75


class Worker:
    """To be made and used on an event loop of `loop_with(door)`.

    Args:
        config: the settings.
        generation: what is served, for good.
        door: of the event loop.
        log: where events go.

    Raises:
        SfumatoError: a network is not good.
    """

    def __init__(self, config: ServeConfig, generation: Generation, door: Door, log: Log) -> None:
        import uvicorn

        silence_libraries()
        self.config = config
        self.core = Core(config, generation, log, door.most)
        self._door = door
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: _unforeseen(log, context))
        context = generation.tls
        app, self._end_telemetry = traced(App(self.core))
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=1,
                ssl_context_factory=None if context is None else lambda *_: context,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept connections."""
        self._serving = asyncio.create_task(self._server.serve([sock]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0.001)

    async def stop(self, *, retire: bool = False) -> None:
        """Take no new connection, answer what was accepted, end the idle connections.

        Args:
            retire: another generation accepts already: readiness goes on to say yes, and nobody has to notice.
        """
        core, config = self.core, self.config
        core.closing = True
        if not retire:
            core.ready = False
            await asyncio.sleep(config.drain_seconds)
        self._door.close()
        if not await self._door.empty(config.shutdown_seconds):
            core.log.event("answers were still due", "error")
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
        core.close()
        await asyncio.to_thread(self._end_telemetry)


def _unforeseen(log: Log, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        log.failure(error)
