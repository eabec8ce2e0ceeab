"""One loaded bundle: its network in an engine, checked before anybody is answered, and what is given of its answers."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.graph import check_graph
from sfumato.deploy.manifest import DECODER
from sfumato.errors import BundleError, first_line
from sfumato.serve import engines
from sfumato.serve.codec import FeatureReader
from sfumato.serve.errors import INVALID, Refusal
from sfumato.serve.generation import Bundle
from sfumato.serve.outputs import Outputs
from sfumato.serve.settings import ServeConfig

__all__ = ["Model", "compare"]

_COMPANY, _GAIN = 8, 4 / 3  # rows, and how much dearer one alone has to be
_LONG = 0.05  # seconds from which two rows have to do


class Model:
    """A decoder that is ready to answer.

    Attributes:
        gains_by_batching: whether rows are much cheaper together, by a measurement: a row alone takes at least 4/3 as
            long as one of eight.

    Raises:
        BundleError: the network cannot be loaded, does not fit its manifest, or its rows depend on one another.
        ConfigError: the engine is missing, or more is to be revealed than the bundle allows.
    """

    def __init__(self, bundle: Bundle, config: ServeConfig) -> None:
        self.manifest = bundle.manifest
        self.name, self.version = self.manifest.name, self.manifest.version
        self.outputs = Outputs(self.manifest.output, config.reveal, config.top_k)
        self.reader = FeatureReader(self.manifest, config.max_rows)
        check_graph(bundle.decoder, DECODER)
        threads = config.inference_threads
        self.run, self.platform, tolerance = engines.load(config.engine, bundle.decoder, self.manifest, threads)
        checks = [(self.run, tolerance)]
        if config.engine != "onnxruntime":
            reference, _, exact = engines.load("onnxruntime", bundle.decoder, self.manifest, 1)
            checks.insert(0, (reference, exact))
        self.gains_by_batching = self._check(checks)

    def answer(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The outputs of one request, by name.

        Raises:
            Refusal: INVALID: the logits are not finite, which no feature of the encoder leads to.
        """
        if not np.isfinite(logits).all():
            raise Refusal(
                INVALID, "these features lie so far outside of what the encoder sends that the logits overflow"
            )
        return self.outputs(logits)

    def _check(self, checks: Sequence[tuple[engines.Run, float]]) -> bool:
        """Compare with rows alone in the first of the engines, each within its tolerance; tell if batching gains."""
        features = self.reader.examples(_COMPANY)
        try:
            self.run(features[:1])  # the first call is slow
            alone, first = _timed(self.run, features[:1])
            rows = _COMPANY if alone < _LONG else 2
            features = features[:rows]
            company = min(_timed(self.run, features)[0] for _ in range(2 if alone < _LONG else 1))
            single = [checks[0][0](features[row : row + 1]) for row in range(rows)]
            for run, tolerance in checks:
                compare(run, features, single, tolerance, f"{DECODER} of {self.name} cannot be served")
        except BundleError:
            raise
        except Exception as error:
            raise BundleError(f"{DECODER} of {self.name} fails ({first_line(error)})") from error
        if first.shape != (1, *self.manifest.output.shape):
            raise BundleError(f"{DECODER} of {self.name} gives {first.shape} for one row; export the bundle again")
        more = max(0.0, (company - alone) / (rows - 1))
        return alone / max(more + (alone - more) / _COMPANY, 1e-9) > _GAIN


def compare(
    run: engines.Run, features: NDArray[Any], single: Sequence[NDArray[Any]], tolerance: float, where: str
) -> None:
    """Whether a row's logits are its own, whoever asks at the same time: alone, in a batch, in a batch turned round.

    Args:
        run: the network.
        features: (N, ...).
        single: N times the expected logits (1, classes), each of one row alone.
        tolerance: largest difference allowed, divided by `max(1, largest logit)`.
        where: begins the sentence.

    Raises:
        BundleError: a difference is larger, or the network gives another number of rows.
    """
    expected = np.concatenate(single)
    scale = max(1.0, float(np.abs(expected).max()))
    for rows in (slice(None), slice(None, None, -1), slice(0, 1)):
        logits = run(np.ascontiguousarray(features[rows]))
        if logits.shape != expected[rows].shape:
            raise BundleError(f"{where}: {len(features[rows])} rows give logits {logits.shape}; export it again")
        difference = float(np.abs(logits - expected[rows]).max()) / scale
        if not difference <= tolerance:  # NaN is refused as well
            raise BundleError(
                f"{where}: the logits of a row in a batch differ from those of the row alone by {difference:.2g}, more "
                f"than {tolerance:g}; remove what mixes the rows of a batch (a normalisation without running "
                "statistics, attention over the batch), or choose another --engine"
            )


def _timed(run: engines.Run, features: NDArray[Any]) -> tuple[float, NDArray[np.float32]]:
    """Seconds of one call and its logits; the smaller of two where a call is short."""
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        logits = run(features)
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > _LONG:
            break
    return seconds, logits
