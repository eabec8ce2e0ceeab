"""No network: the bundle's own decoder, in this process, to check a bundle before anything is served."""

from pathlib import Path
from typing import Any

import numpy.typing as npt

from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.deploy.messages import Tensors
from sfumato.deploy.runtime import session_of
from sfumato.deploy.transport.base import Transport

__all__ = ["OfflineTransport"]


class OfflineTransport(Transport):
    """Runs `decoder.onnx`; it answers all logits, whatever a server would reveal.

    Args:
        folder: the bundle.
        manifest: its manifest.

    Raises:
        BundleError: the decoder is missing, changed, or could draw random numbers.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        model = manifest.read_file(folder, DECODER)
        check_graph(model, DECODER)
        self._session = session_of(model, DECODER)

    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors:
        """The logits of a released feature."""
        (logits,) = self._session.run([manifest.output.name], {manifest.feature.name: feature})
        return {manifest.output.name: logits}

    def close(self) -> None:
        """Nothing to close."""
