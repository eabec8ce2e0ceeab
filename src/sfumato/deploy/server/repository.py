"""The models that are served, by name and version, and how new ones take the place of old ones."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sfumato.deploy.server.batching import Batcher
from sfumato.deploy.server.logs import Log
from sfumato.deploy.server.metrics import Metrics, ModelMetrics
from sfumato.deploy.server.model import Model
from sfumato.deploy.server.refusals import UNKNOWN, Refusal
from sfumato.deploy.server.settings import ServeConfig
from sfumato.errors import ConfigError

__all__ = ["Repository", "Served"]


@dataclass(frozen=True)
class Served:
    """A model and the queue in front of it."""

    model: Model
    batcher: Batcher


class Repository:
    """All models of one process; to be made and used on its event loop.

    Args:
        config: which bundles, and how they are run.
        metrics: where their figures go.
        log: where their failures go.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, log: Log) -> None:
        self._config = config
        self._metrics = metrics
        self._log = log
        self._executor = ThreadPoolExecutor(config.inference_threads, thread_name_prefix="inference")
        self._served: dict[str, dict[str, Served]] = {}

    async def load(self) -> None:
        """Load every bundle anew; when all are good they take the place of what is served, at once.

        A request that was accepted before is answered by the model it was accepted for.

        Raises:
            SfumatoError: a bundle is not good; everything stays as it was.
        """
        models = await asyncio.to_thread(_load, self._config)
        served: dict[str, dict[str, Served]] = {}
        for model in models:
            batcher = Batcher(
                model.run,
                self._executor,
                threads=self._config.inference_threads,
                max_batch=self._config.max_batch,
                max_delay=self._config.max_delay_ms / 1000,
                limit=self._config.queue,
                watcher=ModelMetrics(self._metrics, model.name, model.version, self._log.failure),
                spread=not model.gains_by_batching,
            )
            served.setdefault(model.name, {})[model.version] = Served(model, batcher)
        old, self._served = self._served, served
        await _drain(old)

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
                UNKNOWN, f"model '{name}' has no such version; its versions are {', '.join(self.versions(name))}"
            )
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first."""
        return sorted(self._served.get(name, {}), key=int)

    def all(self) -> list[Model]:
        """Every model in every version."""
        return [one.model for versions in self._served.values() for one in versions.values()]

    def names(self) -> list[str]:
        """The models' names."""
        return list(self._served)

    async def drain(self) -> None:
        """Wait until every accepted request is answered."""
        await _drain(self._served)

    def close(self) -> None:
        """Let go of the inference threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _load(config: ServeConfig) -> list[Model]:
    models = [Model(folder, config) for folder in config.bundles]
    seen: dict[tuple[str, str], Model] = {}
    for model in models:
        if other := seen.get((model.name, model.version)):
            raise ConfigError(
                f"{other.folder} and {model.folder} are both {model.name} version {model.version}; export one of them "
                "with another --name or --version"
            )
        seen[model.name, model.version] = model
    return models


async def _drain(served: dict[str, dict[str, Served]]) -> None:
    waiting: Sequence[Served] = [one for versions in served.values() for one in versions.values()]
    await asyncio.gather(*(one.batcher.drain() for one in waiting))
