"""How much of the logits leaves the server; the less, the harder it is to copy the model by asking it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.manifest import OutputSpec
from sfumato.errors import ConfigError
from sfumato.serve.errors import INVALID, Refusal
from sfumato.serve.settings import Reveal

__all__ = ["Outputs", "Tensor"]

# What gives away less comes later.
_ORDER: tuple[Reveal, ...] = ("logits", "top_k", "label")


@dataclass(frozen=True)
class Tensor:
    """An output as the protocol describes it.

    Attributes:
        name: of the tensor.
        datatype: in the protocol's words.
        width: values of one row.
    """

    name: str
    datatype: str
    width: int


class Outputs:
    """From logits (N, classes) to the outputs that a client may see.

    - `logits`: `logits` FP32 (N, classes), the network's own numbers, bit for bit.
    - `top_k`: `indices` INT64 (N, k), classes from the largest logit down, and `probabilities` FP32 (N, k), the softmax
      over *all* classes at these.
    - `label`: `indices` INT64 (N, 1) alone.

    Equal logits are ordered by their index.

    Args:
        spec: the most that the bundle's maker allows.
        reveal: what the operator asks for; None takes the maker's word.
        top_k: classes for `top_k`.

    Raises:
        ConfigError: the operator asks for more than the manifest allows.
    """

    def __init__(self, spec: OutputSpec, reveal: Reveal | None = None, top_k: int | None = None) -> None:
        chosen = spec.reveal if reveal is None else reveal
        classes = spec.shape[-1]
        k = (spec.top_k if reveal is None else top_k) or 1
        allowed = classes if spec.reveal == "logits" else spec.top_k or 1
        if _ORDER.index(chosen) < _ORDER.index(spec.reveal) or k > allowed:
            word = f"the {spec.top_k} largest" if spec.reveal == "top_k" else f"the {spec.reveal}"
            asked = f"{chosen} {k}" if chosen == "top_k" else chosen
            raise ConfigError(
                f"reveal {asked} is more than the bundle allows ({word} of {classes} classes); ask for less"
            )
        self.reveal = chosen
        self.k = k
        self._logits = spec.name
        self.tensors: tuple[Tensor, ...] = (Tensor("indices", "INT64", k),)
        if chosen == "logits":
            self.tensors = (Tensor(spec.name, "FP32", classes),)
        elif chosen == "top_k":
            self.tensors += (Tensor("probabilities", "FP32", k),)

    def __call__(self, logits: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """The outputs by name."""
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
        """The outputs to send: those asked for, or all.

        Raises:
            Refusal: INVALID: one of them does not exist, or is asked for twice.
        """
        known = [tensor.name for tensor in self.tensors]
        if not set(names) <= set(known):
            raise Refusal(INVALID, f"the model's outputs are {', '.join(known)}; the request asks for another one")
        if len(set(names)) != len(names):
            raise Refusal(INVALID, "the request asks for an output twice")
        return names or known
