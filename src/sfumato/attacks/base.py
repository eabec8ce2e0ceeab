"""The parts of a threat model as objects: an observer hands out what the attacker may see, an attack uses it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sfumato.data import ImageSet
from sfumato.split import SplitModel

__all__ = ["Attack", "Observer", "Progress"]

Progress = Callable[[int, int, dict[str, float]], None]
"""`(done, total, figures)`, called after every epoch of an attack."""


class Observer:
    """The paper's worst case: the training set, white-box access to the encoder, and what crosses the wire.

    Features come from `SplitModel.encode` alone, so an attacker sees them after clipping, noise and quantisation,
    never before, and every call draws fresh noise.

    Args:
        model: the victim, put in evaluation mode.
        images: the attacker's images: the victim's training set.
    """

    def __init__(self, model: SplitModel, images: ImageSet, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.images = images
        self.image_shape = tuple(images.images.shape[1:])
        self._model = model.eval().to(self.device)
        self._pixels = images.images.to(self.device)
        self.feature_shape = tuple(self.encode(self.pixels(torch.arange(1))).shape[1:])

    @property
    def encoder(self) -> nn.Module:
        """White-box access to the device's half."""
        return self._model.edge

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Tensor) -> Tensor:
        """The attacker's images as floats in [0, 1], (n, C, H, W)."""
        return self._pixels[indices.to(self.device)].float().div_(255)

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What leaves the device for images x, with fresh noise, in float32."""
        return self._model.encode(x.to(self.device), generator).float()


@dataclass(frozen=True)
class Fit:
    """How an attack's training went.

    Attributes:
        converged: whether more training would probably not have helped; where False the error is no evidence.
        reason: one sentence, for a reader.
        held_out_mse: error on images of the attacker's set that it did not learn from.
    """

    converged: bool
    reason: str
    held_out_mse: float


class Attack(ABC):
    """Base of every attack: `fit(observer)`, then `reconstruct(z)`."""

    name: ClassVar[str]
    outcome: Fit | None = None

    @abstractmethod
    def fit(self, observer: Observer, **options: Any) -> Self:
        """Learn to invert from what the observer hands out."""

    @abstractmethod
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) released features -> (N, C, H, W) images in [0, 1]."""
