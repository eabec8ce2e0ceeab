"""One loaded bundle: its network in an engine, checked before anybody is answered, and what is given of its answers."""

import timeit
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.graph import company_gap
from sfumato.deploy.manifest import DECODER, OutputSpec
from sfumato.errors import BundleError, ConfigError, first_line
from sfumato.serve import engines
from sfumato.serve.codec import FeatureReader
from sfumato.serve.errors import Refusal
from sfumato.serve.generation import Bundle
from sfumato.serve.settings import Reveal, ServeConfig

__all__ = ["Model", "Outputs"]

_COMPANY, _GAIN = 8, 4 / 3  # rows, and how much dearer one alone has to be
_LONG = 0.05  # seconds from which two rows have to do


class Model:
    """A decoder that is ready to answer; an error says that it is not good.

    `gains_by_batching` tells whether rows are much cheaper together, by a measurement: a row alone takes at least 4/3
    as long as one of eight.
    """

    def __init__(self, bundle: Bundle, config: ServeConfig) -> None:
        self.manifest = bundle.manifest
        self.name, self.version = self.manifest.name, self.manifest.version
        self.outputs = Outputs(self.manifest.output, config.reveal, config.top_k)
        self.reader = FeatureReader(self.manifest, config.max_rows)
        threads = config.inference_threads
        self.run, self.platform, tolerance = engines.load(config.engine, bundle.decoder, self.manifest, threads)
        checks = [(self.run, tolerance)]
        if config.engine != "onnxruntime":
            reference, _, exact = engines.load("onnxruntime", bundle.decoder, self.manifest, 1)
            checks.insert(0, (reference, exact))
        self.gains_by_batching = self._check(checks)

    def _check(self, checks: Sequence[tuple[engines.Run, float]]) -> bool:
        """Compare with rows alone in the first of the engines, each within its tolerance; tell if batching gains."""
        features = self.reader.examples(_COMPANY)
        try:
            first = self.run(features[:1])  # the first call is slow
            alone = min(timeit.repeat(lambda: self.run(features[:1]), number=1, repeat=2))
            rows, calls = (_COMPANY, 4) if alone < _LONG else (2, 1)
            features = features[:rows]
            company = min(timeit.repeat(lambda: self.run(features), number=1, repeat=calls))
            gaps = [company_gap(run, [features], checks[0][0]) for run, _ in checks]
        except Exception as error:
            raise BundleError(f"{DECODER} of {self.name} fails ({first_line(error)})") from error
        if first.shape != (1, *self.manifest.output.shape):
            raise BundleError(f"{DECODER} of {self.name} gives {first.shape} for one row; export the bundle again")
        for (_, tolerance), (gap, largest) in zip(checks, gaps, strict=True):
            gap /= max(1.0, largest)
            if not gap <= tolerance:  # NaN is refused as well
                raise BundleError(
                    f"{DECODER} of {self.name} cannot be served: the logits of a row in a batch differ from those of "
                    f"the row alone by {gap:.2g}, more than {tolerance:g}; remove what mixes the rows of a batch (a "
                    "normalisation without running statistics, attention over the batch), or choose another --engine"
                )
        more = max(0.0, (company - alone) / (rows - 1))
        return alone / max(more + (alone - more) / _COMPANY, 1e-9) > _GAIN


# What gives away less comes later.
_ORDER: tuple[Reveal, ...] = ("logits", "top_k", "label")


class Outputs:
    """From logits (N, classes) to the outputs that a client may see.

    - `logits`: `logits` FP32 (N, classes), the network's own numbers, bit for bit.
    - `top_k`: `indices` INT64 (N, k), classes from the largest logit down, and `probabilities` FP32 (N, k), the softmax
      over *all* classes at these.
    - `label`: `indices` INT64 (N, 1) alone.

    Equal logits are ordered by their index. The manifest says what the bundle's maker allows; an operator who asks for
    more gets a ConfigError. `tensors` holds the datatype and the values of one row by the output's name.
    """

    def __init__(self, spec: OutputSpec, reveal: Reveal | None = None, top_k: int | None = None) -> None:
        self.reveal = spec.reveal if reveal is None else reveal
        self.k = (spec.top_k if reveal is None else top_k) or 1
        classes, self._logits = spec.shape[-1], spec.name
        allowed = classes if spec.reveal == "logits" else spec.top_k or 1
        if _ORDER.index(self.reveal) < _ORDER.index(spec.reveal) or self.k > allowed:
            word = f"the {spec.top_k} largest" if spec.reveal == "top_k" else f"the {spec.reveal}"
            asked = f"{self.reveal} {self.k}" if self.reveal == "top_k" else self.reveal
            raise ConfigError(
                f"reveal {asked} is more than the bundle allows ({word} of {classes} classes); ask for less"
            )
        self.tensors = {"indices": ("INT64", self.k)}
        if self.reveal == "logits":
            self.tensors = {spec.name: ("FP32", classes)}
        elif self.reveal == "top_k":
            self.tensors["probabilities"] = ("FP32", self.k)

    def __call__(self, logits: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """The outputs by name; logits that are not finite, to which no encoder leads, are refused."""
        if not np.isfinite(logits).all():
            raise Refusal(
                "invalid", "these features lie so far outside of what the encoder sends that the logits overflow"
            )
        if self.reveal == "logits":
            return {self._logits: logits}
        indices = np.argsort(-logits, axis=1, kind="stable")[:, : self.k].astype(np.int64)
        if self.reveal == "label":
            return {"indices": indices}
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        odds = np.exp(shifted)
        probabilities = np.take_along_axis(odds / odds.sum(axis=1, keepdims=True), indices, axis=1)
        return {"indices": indices, "probabilities": probabilities.astype(np.float32)}

    def pick(self, names: list[str]) -> list[str]:
        """The outputs to send: those asked for, each once, or all."""
        if not set(names) <= self.tensors.keys():
            raise Refusal(
                "invalid", f"the model's outputs are {', '.join(self.tensors)}; the request asks for another one"
            )
        if len(set(names)) != len(names):
            raise Refusal("invalid", "the request asks for an output twice")
        return names or list(self.tensors)
