"""What one worker is: the models of its generation with a queue in front of each, and the books for Prometheus."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sfumato.errors import ConfigError
from sfumato.serve.batching import Batcher
from sfumato.serve.errors import UNKNOWN, Refusal
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log
from sfumato.serve.model import Model
from sfumato.serve.settings import ServeConfig

__all__ = ["MULTIPROCESS", "Core", "Served"]

# prometheus_client shares the figures of several processes through files in the folder that this variable names.
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Served:
    """A model and the queue in front of it."""

    model: Model
    batcher: Batcher


class Core:
    """One worker's state; to be made on its event loop. Nothing but the two flags ever changes.

    Half of the `connections` that the worker can hold may wait in a queue, so that the door always finds room. `ready`
    tells balancers to send requests, `closing` tells clients to look for another connection. A SfumatoError says that
    a network is not good.
    """

    def __init__(self, config: ServeConfig, generation: Generation, log: Log, connections: int) -> None:
        self.config = config
        self.log = log
        self.metrics = Metrics(generation.number)
        self.tokens = generation.tokens
        self.ready = True
        self.closing = False
        self._executor = ThreadPoolExecutor(config.inference_threads, thread_name_prefix="inference")
        self._served: dict[str, dict[str, Served]] = {}
        for bundle in generation.bundles:
            model = Model(bundle, config)
            batcher = Batcher(
                model.run,
                self._executor,
                threads=config.inference_threads,
                max_batch=config.max_batch,
                limit=min(config.queue, max(1, connections // 2)),
                watcher=ModelMetrics(self.metrics, model.name, model.version, log.failure),
                spread=not model.gains_by_batching,
            )
            self._served.setdefault(model.name, {})[model.version] = Served(model, batcher)

    def find(self, name: str, version: str = "") -> Served:
        """A model, or a refusal; without a version its newest one."""
        versions = self._served.get(name)
        if versions is None:
            raise Refusal(UNKNOWN, "no model of this name is served")
        if not version:
            return versions[max(versions, key=int)]
        if version not in versions:
            raise Refusal(
                UNKNOWN, f"model '{name}' has no such version; its versions are {', '.join(self._versions(name))}"
            )
        return versions[version]

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The protocol's model metadata."""
        model = self.find(name, version).model
        feature = model.manifest.feature
        return {
            "name": model.name,
            "versions": self._versions(name),
            "platform": model.platform,
            "inputs": [{"name": feature.name, "datatype": feature.datatype, "shape": [-1, *feature.shape]}],
            "outputs": [
                {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, tensor.width]}
                for tensor in model.outputs.tensors
            ],
        }

    def account(self, served: Served | None, rows: int, refusal: Refusal | None, seconds: float) -> None:
        """Count and log how one inference request ended."""
        name, version = (served.model.name, served.model.version) if served else ("", "")
        status = str(refusal.reason.status if refusal else 200)
        self.metrics.ended(name, version, status, seconds)
        if refusal is not None:
            self.metrics.rejections.labels(refusal.reason.name).inc()
        self.log.request(
            model=name,
            version=version,
            rows=rows,
            status=status,
            reason=refusal.reason.name if refusal else "",
            ms=round(1000 * seconds, 3),
        )

    def close(self) -> None:
        """Let go of the inference threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first."""
        return sorted(self._served[name], key=int)


class Metrics:
    """The figures of one worker. No label comes from a client."""

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
    """One model's figures, kept as its `Batcher` reports them, from any thread."""

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
