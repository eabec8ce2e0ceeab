"""ONNX Runtime on the CPU, one core for each call."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.graph import session_of
from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.serve.engines import Run

__all__ = ["PLATFORM", "TOLERANCE", "load"]

PLATFORM = "onnxruntime_onnx"
TOLERANCE = 1e-4  # a row's products are summed in another order in a batch: a few 1e-6


def load(network: bytes, manifest: Manifest, threads: int) -> Run:
    """A session that all threads share; it holds no state between calls."""
    session = session_of(manifest, network, DECODER)

    def run(features: NDArray[Any]) -> NDArray[np.float32]:
        (logits,) = session.run([manifest.output.name], {manifest.feature.name: features})
        return logits

    return run
