"""What one worker is: the models of its generation with a queue in front of each, and the books."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sfumato.serve.batching import Batcher
from sfumato.serve.errors import UNKNOWN, Refusal
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log
from sfumato.serve.metrics import Metrics, ModelMetrics
from sfumato.serve.model import Model
from sfumato.serve.settings import ServeConfig

__all__ = ["Core", "Served"]


@dataclass(frozen=True)
class Served:
    """A model and the queue in front of it."""

    model: Model
    batcher: Batcher


class Core:
    """One worker's state; to be made on its event loop. Nothing but the two flags ever changes.

    Args:
        config: limits.
        generation: what is served.
        log: where events go.
        connections: that the worker can hold; half of them may wait in a queue, so that the door always finds room.

    Attributes:
        ready: whether balancers should send requests.
        closing: whether clients should look for another connection.

    Raises:
        SfumatoError: a network is not good.
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
                max_delay=config.max_delay_ms / 1000,
                limit=min(config.queue, max(1, connections // 2)),
                watcher=ModelMetrics(self.metrics, model.name, model.version, log.failure),
                spread=not model.gains_by_batching,
            )
            self._served.setdefault(model.name, {})[model.version] = Served(model, batcher)

    def find(self, name: str, version: str = "") -> Served:
        """A model; without a version its newest one.

        Raises:
            Refusal: UNKNOWN: there is none.
        """
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

    async def drain(self) -> None:
        """Wait until every accepted request is answered."""
        for versions in self._served.values():
            for served in versions.values():
                await served.batcher.drain()

    def close(self) -> None:
        """Let go of the inference threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first."""
        return sorted(self._served[name], key=int)
