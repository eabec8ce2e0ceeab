"""ONNX Runtime on the CPU, one core for each call."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.deploy.runtime import check_signature, session_of
from sfumato.serve.engines import Run

__all__ = ["PLATFORM", "TOLERANCE", "load"]

PLATFORM = "onnxruntime_onnx"
TOLERANCE = 1e-4  # a row's products are summed in another order in a batch: a few 1e-6

_TYPES = {"FP32": "tensor(float)", "UINT8": "tensor(uint8)", "UINT16": "tensor(uint16)"}


def load(network: bytes, manifest: Manifest, threads: int) -> Run:
    """A session that all threads share; it holds no state between calls."""
    session = session_of(network, DECODER)
    feature, output = manifest.feature, manifest.output
    inputs = {feature.name: (_TYPES[feature.datatype], feature.shape)}
    check_signature(session, inputs, (output.name, output.shape), DECODER)

    def run(features: NDArray[Any]) -> NDArray[np.float32]:
        (logits,) = session.run([output.name], {feature.name: features})
        return logits

    return run
