"""What one worker is: the models of its generation with a queue in front of each, and the books for Prometheus.

A model is a network in an engine, checked before anybody is answered, and what is given away of its answers.
"""

import os
import time
import timeit
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.graph import company_gap
from sfumato.deploy.manifest import DECODER, OutputSpec
from sfumato.errors import BundleError, ConfigError, first_line
from sfumato.serve import engines
from sfumato.serve.batching import Batcher
from sfumato.serve.codec import FeatureReader
from sfumato.serve.errors import Refusal
from sfumato.serve.generation import Bundle, Generation
from sfumato.serve.logs import Log
from sfumato.serve.settings import Reveal, ServeConfig

__all__ = ["MULTIPROCESS", "Core", "Model", "Outputs"]

# prometheus_client shares the figures of several processes through files in the folder that this variable names.
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_COMPANY, _GAIN = 8, 4 / 3  # rows, and how much dearer one alone has to be
_LONG = 0.05  # seconds from which two rows have to do
_ORDER: tuple[Reveal, ...] = ("logits", "top_k", "label")  # what gives away less comes later


class Model:
    """A decoder that is ready to answer; an error says that it is not good.

    `gains_by_batching` tells whether rows are much cheaper together, by a measurement: a row alone takes at least 4/3
    as long as one of eight. The queue in front of it is its `batcher`.
    """

    batcher: Batcher

    def __init__(self, bundle: Bundle, config: ServeConfig) -> None:
        self.manifest = bundle.manifest
        self.name, self.version = self.manifest.name, self.manifest.version
        self.outputs = Outputs(self.manifest.output, config.reveal, config.top_k)
        self.reader = FeatureReader(self.manifest, config.max_rows)
        threads = config.inference_threads
        self.run, self.platform, tolerance = engines.load(config.engine, bundle.decoder, self.manifest, threads)
        checks = [(self.run, tolerance)]
        if config.engine != "onnxruntime":
            reference, _, exact = engines.load("onnxruntime", bundle.decoder, self.manifest, 1)
            checks.insert(0, (reference, exact))
        self.gains_by_batching = self._check(checks)

    def _check(self, checks: Sequence[tuple[engines.Run, float]]) -> bool:
        """Compare with rows alone in the first of the engines, each within its tolerance; tell if batching gains."""
        features = self.reader.examples(_COMPANY)
        try:
            first = self.run(features[:1])  # the first call is slow
            alone = _fastest(self.run, features[:1], 2)
            rows, calls = (_COMPANY, 4) if alone < _LONG else (2, 1)
            features = features[:rows]
            company = _fastest(self.run, features, calls)
            gaps = [company_gap(run, [features], checks[0][0]) for run, _ in checks]
        except Exception as error:
            raise BundleError(f"{DECODER} of {self.name} fails ({first_line(error)})") from error
        if first.shape != (1, *self.manifest.output.shape):
            raise BundleError(f"{DECODER} of {self.name} gives {first.shape} for one row; export the bundle again")
        for (_, tolerance), (gap, largest) in zip(checks, gaps, strict=True):
            gap /= max(1.0, largest)
            if not gap <= tolerance:  # NaN is refused as well
                raise BundleError(
                    f"{DECODER} of {self.name} cannot be served: the logits of a row in a batch differ from those of "
                    f"the row alone by {gap:.2g}, more than {tolerance:g}; remove what mixes the rows of a batch (a "
                    "normalisation without running statistics, attention over the batch), or choose another --engine"
                )
        more = max(0.0, (company - alone) / (rows - 1))
        return alone / max(more + (alone - more) / _COMPANY, 1e-9) > _GAIN


def _fastest(run: engines.Run, features: NDArray[Any], calls: int) -> float:
    """Seconds of the fastest of some calls."""
    return min(timeit.repeat(lambda: run(features), timer=time.perf_counter, number=1, repeat=calls))


class Outputs:
    """From logits (N, classes) to the outputs that a client may see.

    - `logits`: `logits` FP32 (N, classes), the network's own numbers, bit for bit.
    - `top_k`: `indices` INT64 (N, k), classes from the largest logit down, and `probabilities` FP32 (N, k), the softmax
      over *all* classes at these.
    - `label`: `indices` INT64 (N, 1) alone.

    Equal logits are ordered by their index. The manifest says what the bundle's maker allows; an operator who asks for
    more gets a ConfigError. `tensors` holds the datatype and the values of one row by the output's name.
    """

    def __init__(self, spec: OutputSpec, reveal: Reveal | None = None, top_k: int | None = None) -> None:
        self.reveal = spec.reveal if reveal is None else reveal
        self.k = (spec.top_k if reveal is None else top_k) or 1
        classes, self._logits = spec.shape[-1], spec.name
        allowed = classes if spec.reveal == "logits" else spec.top_k or 1
        if _ORDER.index(self.reveal) < _ORDER.index(spec.reveal) or self.k > allowed:
            word = f"the {spec.top_k} largest" if spec.reveal == "top_k" else f"the {spec.reveal}"
            asked = f"{self.reveal} {self.k}" if self.reveal == "top_k" else self.reveal
            raise ConfigError(
                f"reveal {asked} is more than the bundle allows ({word} of {classes} classes); ask for less"
            )
        self.tensors = {"indices": ("INT64", self.k)}
        if self.reveal == "logits":
            self.tensors = {spec.name: ("FP32", classes)}
        elif self.reveal == "top_k":
            self.tensors["probabilities"] = ("FP32", self.k)

    def __call__(self, logits: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """The outputs by name; logits that are not finite, to which no encoder leads, are refused."""
        if not np.isfinite(logits).all():
            raise Refusal(
                "invalid", "these features lie so far outside of what the encoder sends that the logits overflow"
            )
        if self.reveal == "logits":
            return {self._logits: logits}
        indices = np.argsort(-logits, axis=1, kind="stable")[:, : self.k].astype(np.int64)
        if self.reveal == "label":
            return {"indices": indices}
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        odds = np.exp(shifted)
        probabilities = np.take_along_axis(odds / odds.sum(axis=1, keepdims=True), indices, axis=1)
        return {"indices": indices, "probabilities": probabilities.astype(np.float32)}

    def pick(self, names: list[str]) -> list[str]:
        """The outputs to send: those asked for, each once, or all."""
        if not set(names) <= self.tensors.keys():
            raise Refusal(
                "invalid", f"the model's outputs are {', '.join(self.tensors)}; the request asks for another one"
            )
        if len(set(names)) != len(names):
            raise Refusal("invalid", "the request asks for an output twice")
        return names or list(self.tensors)


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
        self._models: dict[str, dict[str, Model]] = {}
        for bundle in generation.bundles:
            model = Model(bundle, config)
            model.batcher = Batcher(
                model.run,
                self._executor,
                threads=config.inference_threads,
                max_batch=config.max_batch,
                limit=min(config.queue, max(1, connections // 2)),
                watcher=ModelMetrics(self.metrics, model.name, model.version, log.failure),
                spread=not model.gains_by_batching,
            )
            self._models.setdefault(model.name, {})[model.version] = model

    def find(self, name: str, version: str = "") -> Model:
        """A model, or a refusal; without a version its newest one."""
        versions = self._models.get(name)
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
        model = self.find(name, version)
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

    def account(self, model: Model | None, rows: int, refusal: Refusal | None, seconds: float) -> None:
        """Count and log how one inference request ended."""
        name, version = (model.name, model.version) if model else ("", "")
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
        return sorted(self._models[name], key=int)


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
        own = {"model": name, "version": version}
        self.queued, self._log_failure = metrics.queue.labels(**own).set, log_failure
        self._batch, self._inference = metrics.batch.labels(**own), metrics.inference.labels(**own)
        self._rows, self._failures = metrics.rows.labels(**own), metrics.failures.labels(**own)

    def ran(self, rows: int, seconds: float) -> None:
        """Batch size and duration."""
        self._batch.observe(rows)
        self._rows.inc(rows)
        self._inference.observe(seconds)

    def failed(self, error: BaseException) -> None:
        """Count and log."""
        self._failures.inc()
        self._log_failure(error)
