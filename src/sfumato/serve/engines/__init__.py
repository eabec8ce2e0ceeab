"""What runs a decoder, one file each, chosen by name: `onnxruntime` is the reference, others are compared with it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.manifest import Manifest
from sfumato.serve.settings import EngineName

__all__ = ["Run", "load"]

Run = Callable[[NDArray[Any]], NDArray[np.float32]]

_HOME = {"onnxruntime": "ort", "openvino": "ov"}


def load(name: EngineName, network: bytes, manifest: Manifest, threads: int) -> tuple[Run, str, float]:
    """A decoder, from its verified bytes, in an engine that makes `threads` calls at the same time, each on one core.

    Returns:
        The function from features (N, ...) to logits (N, classes), which threads may call at the same time; the
        protocol's name of the platform; and how far its logits may lie from ONNX Runtime's of one row alone, divided by
        `max(1, largest logit)`.

    Raises:
        BundleError: the engine cannot load the network, or it does not fit its manifest.
        ConfigError: the engine's package is missing.
    """
    engine = import_module(f"sfumato.serve.engines.{_HOME[name]}")
    return engine.load(network, manifest, threads), engine.PLATFORM, engine.TOLERANCE
