"""OpenTelemetry, where its standard environment variables ask for it: one span for each request, and its metrics."""

import os
from collections.abc import Callable
from typing import Any

from sfumato.errors import ConfigError

__all__ = ["traced"]

_ENDPOINTS = tuple(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT" for part in ("", "TRACES_", "METRICS_"))


def traced(app: Any) -> tuple[Any, Callable[[], Any]]:
    """The application, with OpenTelemetry's own ASGI instrumentation around it if an endpoint is set.

    Names, sampling, headers and resources come from the environment (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...),
    as OpenTelemetry's SDK documents them; `OTEL_SDK_DISABLED=true` turns all of it off.

    Returns:
        The application, and what sends the last spans and figures when it ends.

    Raises:
        ConfigError: it is asked for and not installed.
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
