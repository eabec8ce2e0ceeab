"""What both transports share: the models, who may ask, whether we are ready, and the books about every request."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato import __version__
from sfumato.deploy.server.access import Tokens
from sfumato.deploy.server.logs import Log
from sfumato.deploy.server.metrics import Metrics
from sfumato.deploy.server.model import PLATFORM
from sfumato.deploy.server.refusals import BUSY, Refusal
from sfumato.deploy.server.repository import Repository, Served
from sfumato.deploy.server.settings import ServeConfig
from sfumato.deploy.server.tls import Certificates
from sfumato.errors import SfumatoError

__all__ = ["NAME", "Account", "Core"]

NAME = "sfumato"
EXTENSIONS = ["binary_tensor_data"]


class Core:
    """One worker's state; to be made on its event loop, then loaded.

    Attributes:
        ready: whether balancers should send requests.
        stopping: whether the transports take no new connections and calls, and only finish what they have accepted.
    """

    def __init__(self, config: ServeConfig, log: Log | None = None) -> None:
        self.config = config
        self.log = Log(requests=config.log_requests) if log is None else log
        self.metrics = Metrics()
        self.certificates = Certificates(config)
        self.tokens = Tokens(config.token_file)
        self.models = Repository(config, self.metrics, self.log)
        self.ready = False
        self.stopping = False

    async def load(self) -> None:
        """Load the bundles and be ready."""
        await self.models.load()
        self.ready = True

    async def reload(self) -> bool:
        """Read bundles, tokens and certificates again; whatever is not good leaves everything as it was."""
        try:
            tokens = Tokens(self.config.token_file)
            await self.models.load()
            self.certificates.reload()
        except (SfumatoError, OSError) as error:
            self.metrics.reloads.labels("failed").inc()
            self.log.event("reload failed", "error", error=str(error))
            return False
        self.tokens = tokens
        self.metrics.reloads.labels("done").inc()
        self.log.event("reloaded", models=self.models.names())
        return True

    def find(self, name: str, version: str = "") -> Served:
        """The model of an inference request, if one more request may be read for it.

        Raises:
            Refusal: UNKNOWN or BUSY.
        """
        served = self.models.find(name, version)
        if served.batcher.full:
            raise Refusal(BUSY, f"{self.config.queue} requests wait already; try again a little later")
        return served

    async def infer(
        self, served: Served, features: NDArray[Any], patience: float | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """The outputs of checked features.

        Args:
            served: from `find`.
            features: from the model's reader.
            patience: seconds the client is willing to wait for a thread; the server's own limit holds too.
        """
        limit = self.config.deadline_ms / 1000
        logits = await served.batcher.submit(features, limit if patience is None else min(limit, patience))
        return served.model.answer(logits)

    def server_metadata(self) -> dict[str, Any]:
        """The protocol's server metadata."""
        return {"name": NAME, "version": __version__, "extensions": EXTENSIONS}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The protocol's model metadata."""
        model = self.models.find(name, version).model
        feature = model.manifest.feature
        return {
            "name": model.name,
            "versions": self.models.versions(name),
            "platform": PLATFORM,
            "inputs": [{"name": feature.name, "datatype": feature.datatype, "shape": [-1, *feature.shape]}],
            "outputs": [
                {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, tensor.width]}
                for tensor in model.reveal.tensors
            ],
        }


class Account:
    """The books of one inference request."""

    def __init__(self, core: Core, transport: str) -> None:
        self._core = core
        self._transport = transport
        self._began = time.monotonic()
        self.served: Served | None = None
        self.rows = 0

    def close(self, status: str, refusal: Refusal | None = None) -> None:
        """Count and log how it ended."""
        seconds = time.monotonic() - self._began
        model = self.served.model if self.served else None
        name, version = (model.name, model.version) if model else ("", "")
        metrics = self._core.metrics
        if refusal is None:
            metrics.answered(name, version, self._transport, status, seconds)
        else:
            metrics.requests.labels(name, version, self._transport, status).inc()
            metrics.rejections.labels(self._transport, refusal.reason.name).inc()
        self._core.log.request(
            transport=self._transport,
            model=name,
            version=version,
            rows=self.rows,
            status=status,
            reason=refusal.reason.name if refusal else "",
            ms=round(1000 * seconds, 3),
        )
