"""From a server's tensors to a class: logits, the k likeliest, or the label alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.errors import RemoteError

__all__ = ["Prediction", "predictions"]


@dataclass(frozen=True)
class Prediction:
    """What the decoder says about one image.

    Attributes:
        label: name of the likeliest class.
        index: its number.
        probabilities: probability by class name, likeliest first, as far as the server reveals them; empty where it
            gives the label alone.
    """

    label: str
    index: int
    probabilities: dict[str, float]


def predictions(outputs: Mapping[str, npt.NDArray[Any]], manifest: Manifest, count: int) -> list[Prediction]:
    """One prediction for each image of the query.

    Args:
        outputs: the answer's tensors by name: `logits` (n, classes); or `indices` (n, k), likeliest first, with
            `probabilities` (n, k) or without.
        manifest: with the names of the classes.
        count: images asked about.

    Raises:
        RemoteError: the answer does not fit the question.
    """
    classes = len(manifest.classes)
    logits = outputs.get(manifest.output.name)
    if logits is not None:
        if logits.shape != (count, classes) or logits.dtype != np.float32 or not np.isfinite(logits).all():
            raise _unfit(f"logits are {logits.dtype} {logits.shape}, or not finite")
        odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        shares = odds / odds.sum(axis=1, keepdims=True)
        order = np.argsort(-logits, axis=1, kind="stable")
        return [_prediction(manifest, row, share[row]) for row, share in zip(order, shares, strict=True)]
    indices, shares = outputs.get("indices"), outputs.get("probabilities", np.zeros((count, 0), np.float32))
    if (
        indices is None
        or indices.dtype != np.int64
        or indices.ndim != 2
        or len(indices) != count
        or not 1 <= indices.shape[1] <= classes
        or indices.min() < 0
        or indices.max() >= classes
        or shares.shape not in ((count, 0), indices.shape)
        or not np.isfinite(shares).all()
    ):
        raise _unfit(f"it holds {', '.join(f'{name} {part.shape}' for name, part in outputs.items()) or 'nothing'}")
    return [_prediction(manifest, row, share) for row, share in zip(indices, shares, strict=True)]


def _prediction(manifest: Manifest, order: npt.NDArray[np.int64], shares: npt.NDArray[Any]) -> Prediction:
    names = manifest.classes
    shown = zip(order, shares, strict=False)  # a label alone comes without shares
    return Prediction(names[order[0]], int(order[0]), {names[index]: float(share) for index, share in shown})


def _unfit(reason: str) -> RemoteError:
    return RemoteError(f"the server's answer does not fit the bundle ({reason}); does it serve the same bundle?")
