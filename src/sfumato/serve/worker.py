"""One worker: uvicorn as it is behind a door, from the first accepted connection to the last answer."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from sfumato.errors import ConfigError
from sfumato.serve.app import App
from sfumato.serve.core import Core
from sfumato.serve.door import Door
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log
from sfumato.serve.settings import ServeConfig

__all__ = ["Worker"]

_KEEP_ALIVE = 75
_ENDPOINTS = tuple(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT" for part in ("", "TRACES_", "METRICS_"))


class Worker:
    """To be made and used on an event loop of `loop_with(door)`; a SfumatoError says that a network is not good."""

    def __init__(self, config: ServeConfig, generation: Generation, door: Door, log: Log) -> None:
        import uvicorn

        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # its lines, as uvicorn's, may hold what a client sent
        self.config = config
        self.core = Core(config, generation, log, door.most)
        self._door = door
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, found: log.failure(found["exception"]) if "exception" in found else None)
        context = generation.tls
        app, self._end_telemetry = traced(App(self.core))
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
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

        Who retires goes on to say that it is ready: another generation accepts already, and nobody has to notice.
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


def traced(app: Any) -> tuple[Any, Callable[[], Any]]:
    """The application, with OpenTelemetry's own ASGI instrumentation around it if an endpoint is set.

    Names, sampling, headers and resources come from the environment (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...),
    as OpenTelemetry's SDK documents them; `OTEL_SDK_DISABLED=true` turns all of it off. The second value
    sends the last spans and figures when the application ends.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return app, lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed; install sfumato[otel]"
        ) from None
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    wrapped = OpenTelemetryMiddleware(
        app, tracer_provider=tracers, meter_provider=meters, exclude_spans=["receive", "send"]
    )

    def end() -> None:
        tracers.shutdown()
        meters.shutdown()

    return wrapped, end
