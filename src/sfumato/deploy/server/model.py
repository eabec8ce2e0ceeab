"""One loaded bundle: its manifest, its decoder in ONNX Runtime, and what is given away of its answers."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.deploy.runtime import session_of
from sfumato.deploy.server.refusals import INVALID, Refusal
from sfumato.deploy.server.reveal import Revealer
from sfumato.deploy.server.settings import ServeConfig
from sfumato.deploy.server.tensors import FeatureReader
from sfumato.errors import BundleError

__all__ = ["PLATFORM", "Model"]

PLATFORM = "onnxruntime_onnx"

_COMPANY, _GAIN = 8, 4 / 3  # rows, and how much dearer one alone has to be
_TRIALS, _LONG = 3, 0.05  # calls for a measurement; seconds from which fewer have to do

_ONNX_TYPES = {"FP32": "tensor(float)", "UINT8": "tensor(uint8)", "UINT16": "tensor(uint16)"}


class Model:
    """A decoder that is ready to answer.

    Attributes:
        gains_by_batching: whether rows are much cheaper together, by a measurement: a row alone takes at least 4/3 as
            long as one of eight.

    Raises:
        BundleError: the bundle is damaged, changed, not signed as required, or its network does not fit its manifest.
        ConfigError: ONNX Runtime is missing, or more is to be revealed than the bundle allows.
    """

    def __init__(self, folder: Path, config: ServeConfig) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder, require_signature=config.require_signature, files=())
        self.name, self.version = self.manifest.name, self.manifest.version
        self.reveal = Revealer(self.manifest.output, config.reveal, config.top_k)
        self.reader = FeatureReader(self.manifest, config.max_rows)
        network = self.manifest.read_file(folder, DECODER)  # the bytes that were hashed are the bytes that are run
        check_graph(network, DECODER)
        self._session = session_of(network, DECODER)
        self._check()
        self.gains_by_batching = self._gain() > _GAIN

    def run(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of features (N, ...). Threads may call it at the same time."""
        (logits,) = self._session.run([self.manifest.output.name], {self.manifest.feature.name: features})
        return logits

    def answer(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The outputs of one request, by name.

        Raises:
            Refusal: INVALID: the logits are not finite, which no feature of the encoder leads to.
        """
        if not np.isfinite(logits).all():
            raise Refusal(
                INVALID, "these features lie so far outside of what the encoder sends that the logits overflow"
            )
        return self.reveal(logits)

    def pick(self, names: list[str]) -> list[str]:
        """The outputs to send: those asked for, or all.

        Raises:
            Refusal: INVALID: one of them does not exist, or is asked for twice.
        """
        known = [tensor.name for tensor in self.reveal.tensors]
        if not set(names) <= set(known):
            raise Refusal(INVALID, f"the model's outputs are {', '.join(known)}; the request asks for another one")
        if len(set(names)) != len(names):
            raise Refusal(INVALID, "the request asks for an output twice")
        return names or known

    def _check(self) -> None:
        feature, output = self.manifest.feature, self.manifest.output
        inputs = {node.name: (node.type, list(node.shape[1:])) for node in self._session.get_inputs()}
        outputs = {node.name: (node.type, list(node.shape[1:])) for node in self._session.get_outputs()}
        wanted_in = {feature.name: (_ONNX_TYPES[feature.datatype], list(feature.shape))}
        wanted_out = {output.name: ("tensor(float)", list(output.shape))}
        if inputs != wanted_in or outputs != wanted_out:
            raise BundleError(
                f"{self.folder / DECODER} maps {inputs} to {outputs}, its manifest says {wanted_in} to {wanted_out}; "
                "export the bundle again"
            )
        for rows in (1, 2):  # the first call is slow, and a network of a fixed batch would fail here and not later
            try:
                logits = self.run(np.zeros((rows, *feature.shape), self.reader.dtype))
            except Exception as error:
                raise BundleError(f"{self.folder / DECODER} fails on {rows} rows ({_line(error)})") from error
            if logits.shape != (rows, *output.shape):
                raise BundleError(
                    f"{self.folder / DECODER} gives {logits.shape} for {rows} rows; export the bundle again"
                )

    def _gain(self) -> float:
        """How much longer a row alone takes than one of eight, from the time that one more row takes."""
        alone = self._seconds(1)
        rows = _COMPANY if alone < _LONG else 2
        more = max(0.0, (self._seconds(rows) - alone) / (rows - 1))
        return alone / max(more + (alone - more) / _COMPANY, 1e-9)

    def _seconds(self, rows: int) -> float:
        features = np.zeros((rows, *self.manifest.feature.shape), self.reader.dtype)
        found: list[float] = []
        while len(found) < _TRIALS and sum(found) < 2 * _LONG:
            began = time.perf_counter()
            self.run(features)
            found.append(time.perf_counter() - began)
        return min(found)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
