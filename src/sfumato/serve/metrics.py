"""What Prometheus reads at `/metrics`: counts, times, batches, the queue. No label comes from a client."""

import os
from typing import Any

from sfumato.errors import ConfigError

__all__ = ["MULTIPROCESS", "Metrics", "ModelMetrics"]

# prometheus_client shares the figures of several processes through files in the folder that this variable names.
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one worker.

    Args:
        generation: that it serves.
    """

    def __init__(self, generation: int = 1) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise ConfigError("serving needs prometheus-client and more; install sfumato[serve]") from None
        self._prometheus = prometheus
        self._registry = registry = prometheus.CollectorRegistry()
        model = ["model", "version"]

        def counter(name: str, text: str, labels: list[str]) -> Any:
            return prometheus.Counter(name, text, labels, registry=registry)

        self.requests = counter("sfumato_requests", "Inference requests that came to an end", [*model, "status"])
        self.rejections = counter("sfumato_rejections", "Requests that were refused", ["reason"])
        self.rows = counter("sfumato_rows", "Rows that the network answered", model)
        self.failures = counter("sfumato_inference_failures", "Calls of the network that raised", model)
        self.seconds = prometheus.Histogram(
            "sfumato_request_seconds",
            "From the head of an answered inference request to its answer",
            model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.inference = prometheus.Histogram(
            "sfumato_inference_seconds", "One call of the network", model, buckets=_SECONDS, registry=registry
        )
        self.batch = prometheus.Histogram(
            "sfumato_batch_rows", "Rows in one call of the network", model, buckets=_ROWS, registry=registry
        )
        self.queue = prometheus.Gauge(
            "sfumato_queue_requests", "Requests waiting now", model, registry=registry, multiprocess_mode="livesum"
        )
        prometheus.Gauge(
            "sfumato_generation", "1, and one more with each reload", registry=registry, multiprocess_mode="livemax"
        ).set(generation)
        self._children: dict[tuple[str, str, str], tuple[Any, Any]] = {}

    def ended(self, name: str, version: str, status: str, seconds: float) -> None:
        """One inference request. Looking up the labels' figures each time costs more than the counting."""
        key = (name, version, status)
        if key not in self._children:
            self._children[key] = (self.requests.labels(*key), self.seconds.labels(name, version))
        count, times = self._children[key]
        count.inc()
        if status == "200":
            times.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Body and content type of `/metrics`; all workers' figures where there are several."""
        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = self._prometheus.CollectorRegistry()
            MultiProcessCollector(registry)
        return self._prometheus.generate_latest(registry), self._prometheus.CONTENT_TYPE_LATEST


class ModelMetrics:
    """A `Watcher` that keeps one model's figures."""

    def __init__(self, metrics: Metrics, name: str, version: str, log_failure: Any) -> None:
        self._queue = metrics.queue.labels(name, version)
        self._batch = metrics.batch.labels(name, version)
        self._inference = metrics.inference.labels(name, version)
        self._rows = metrics.rows.labels(name, version)
        self._failures = metrics.failures.labels(name, version)
        self._log_failure = log_failure

    def queued(self, requests: int) -> None:
        """Queue depth."""
        self._queue.set(requests)

    def ran(self, rows: int, seconds: float) -> None:
        """Batch size and duration."""
        self._batch.observe(rows)
        self._rows.inc(rows)
        self._inference.observe(seconds)

    def failed(self, error: BaseException) -> None:
        """Count and log."""
        self._failures.inc()
        self._log_failure(error)
