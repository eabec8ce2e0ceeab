"""What one worker is: the models of its generation with a queue in front of each, and the books for Prometheus."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sfumato.serve.batching import Batcher
from sfumato.serve.errors import Refusal
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
            raise Refusal("unknown", "no model of this name is served")
        if not version:
            return versions[max(versions, key=int)]
        if version not in versions:
            raise Refusal(
                "unknown", f"model '{name}' has no such version; its versions are {', '.join(self._versions(name))}"
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
                {"name": output, "datatype": datatype, "shape": [-1, width]}
                for output, (datatype, width) in model.outputs.tensors.items()
            ],
        }

    def account(self, served: Served | None, rows: int, refusal: Refusal | None, seconds: float) -> None:
        """Count and log how one inference request ended."""
        name, version = (served.model.name, served.model.version) if served else ("", "")
        status = str(refusal.status if refusal else 200)
        self.metrics.ended(name, version, status, seconds)
        if refusal is not None:
            self.metrics.rejections.labels(refusal.reason).inc()
        self.log.request(
            model=name,
            version=version,
            rows=rows,
            status=status,
            reason=refusal.reason if refusal else "",
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
        import prometheus_client as prometheus

        self._prometheus, self._registry = prometheus, prometheus.CollectorRegistry()
        model = ("model", "version")
        own: dict[str, Any] = {"registry": self._registry}
        each, timed = {**own, "labelnames": model}, {**own, "labelnames": model, "buckets": _SECONDS}
        self.requests = prometheus.Counter(
            "sfumato_requests", "Inference requests that came to an end", (*model, "status"), **own
        )
        self.rejections = prometheus.Counter("sfumato_rejections", "Requests that were refused", ("reason",), **own)
        self.rows = prometheus.Counter("sfumato_rows", "Rows that the network answered", **each)
        self.failures = prometheus.Counter("sfumato_inference_failures", "Calls of the network that raised", **each)
        self.seconds = prometheus.Histogram(
            "sfumato_request_seconds", "From the head of an answered inference request to its answer", **timed
        )
        self.inference = prometheus.Histogram("sfumato_inference_seconds", "One call of the network", **timed)
        self.batch = prometheus.Histogram(
            "sfumato_batch_rows", "Rows in one call of the network", buckets=_ROWS, **each
        )
        self.queue = prometheus.Gauge(
            "sfumato_queue_requests", "Requests waiting now", multiprocess_mode="livesum", **each
        )
        prometheus.Gauge(
            "sfumato_generation", "1, and one more with each reload", multiprocess_mode="livemax", **own
        ).set(generation)
        # Looking up the labels' figures each time costs more than the counting.
        self._ended = lru_cache(lambda *key: (self.requests.labels(*key), self.seconds.labels(*key[:2])))

    def ended(self, name: str, version: str, status: str, seconds: float) -> None:
        """One inference request."""
        count, times = self._ended(name, version, status)
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
        figures = metrics.queue, metrics.batch, metrics.inference, metrics.rows, metrics.failures
        self._queue, self._batch, self._inference, self._rows, self._failures = (
            figure.labels(name, version) for figure in figures
        )
        self.queued, self._log_failure = self._queue.set, log_failure

    def ran(self, rows: int, seconds: float) -> None:
        """Batch size and duration."""
        self._batch.observe(rows)
        self._rows.inc(rows)
        self._inference.observe(seconds)

    def failed(self, error: BaseException) -> None:
        """Count and log."""
        self._failures.inc()
        self._log_failure(error)
