"""OpenVINO on the CPU: bfloat16 where the processor computes with it, float32 elsewhere."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.errors import BundleError, ConfigError, first_line
from sfumato.serve.engines import Run

__all__ = ["PLATFORM", "TOLERANCE", "load"]

PLATFORM = "openvino"
TOLERANCE = 2e-2  # bfloat16 keeps eight bits of a factor: 2^-9 of each, some layers deep


def load(network: bytes, manifest: Manifest, threads: int) -> Run:
    """A compiled model with one stream and one request for each thread."""
    check_graph(network, DECODER)
    try:
        import openvino
    except ImportError:
        raise ConfigError("--engine openvino needs the package openvino; install sfumato[openvino]") from None
    try:
        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(core.read_model(network), "CPU", settings)
    except Exception as error:  # whatever it raises means this
        raise BundleError(
            f"OpenVINO cannot load {DECODER} ({first_line(error)}); serve it with --engine onnxruntime"
        ) from error
    own = threading.local()

    def run(features: NDArray[Any]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer({manifest.feature.name: features})
        return np.array(own.request.get_tensor(manifest.output.name).data)  # the tensor's memory serves the next call

    return run
