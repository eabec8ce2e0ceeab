"""The parts of a threat model as objects: an observer hands out what the attacker may see, an attack uses it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sfumato.attacks.queries import Duplicates, Noise, encode_repeated
from sfumato.data import ImageSet
from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.seeds import generator
from sfumato.split import SplitModel

__all__ = ["Attack", "Fit", "Observer", "Progress", "hold_out"]

Progress = Callable[[int, int, dict[str, float]], None]
"""`(done, total, figures)`, called after every epoch of an attack."""


class Observer:
    """The paper's worst case: the training set, white-box access to the encoder, and what crosses the wire.

    Features come from `SplitModel.encode` and the channel's own release alone, so an attacker sees them after clipping,
    noise and quantisation, never before, and every call draws fresh noise. Weaker attackers are subclasses that hand
    out less (`sfumato.attacks.knowledge`).

    Args:
        model: the victim; it runs in evaluation mode, and keeps the mode it has. Its cloud is never used; its edge may
            be any module, also one that cannot be differentiated.
        images: the attacker's images: the victim's training set.
        white_box: whether the attacker may look into the encoder; None says yes where it can be differentiated.

    Attributes:
        encodes: whether the attacker can have images of its own making encoded (turned, shifted, the same one twice).
    """

    encodes: bool = True

    def __init__(
        self,
        model: SplitModel,
        images: ImageSet,
        *,
        device: torch.device | str = "cpu",
        white_box: bool | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.images = images
        self.image_shape = tuple(images.images.shape[1:])
        self._model = model.to(self.device)
        self._pixels = images.images.to(self.device)
        self._white_box = white_box
        self.feature_shape = tuple(self.encode(self.pixels(torch.arange(1))).shape[1:])

    @property
    def encoder(self) -> nn.Module:
        """White-box access to the device's half.

        Raises:
            ConfigError: this attacker has none.
        """
        if self._white_box is False:
            raise ConfigError("this attacker has no white-box access to the encoder; give it an observer that has")
        return self._model.edge

    @property
    def noise_std(self) -> float:
        """The standard deviation of the channel's noise, as this attacker believes it to be."""
        return self._model.channel.noise_std

    @cached_property
    def white_box(self) -> bool:
        """Whether `features` can be differentiated by this attacker."""
        if self._white_box is False:
            return False
        x = self.pixels(torch.arange(1)).requires_grad_()
        try:
            with torch.enable_grad(), evaluating(self._model, gradients=True):
                z_hat = self._model.features(x)
            (slope,) = torch.autograd.grad(z_hat.sum(), x, allow_unused=True)
        except RuntimeError:  # an encoder outside of PyTorch has no graph
            return False
        return slope is not None and bool(slope.isfinite().all())

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Tensor) -> Tensor:
        """The attacker's images as floats in [0, 1], (n, C, H, W)."""
        return self._pixels[indices.to(self.device)].float().div_(255)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What leaves the device for images x, with fresh noise, in float32."""
        with evaluating(self._model):
            return self._model.encode(x.to(self.device), generator).float()

    def pairs(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The attacker's images at `indices` and what left the device for them."""
        x = self.pixels(indices)
        return x, self.encode(x, generator)

    def features(self, x: Tensor) -> Tensor:
        """z_hat (n, ...) of images x (n, C, H, W), differentiable with respect to x: the white-box view.

        An attacker with the encoder's weights computes it without the device, for images of its own. It never is the
        feature of a victim's image, of which only `encode` says something.

        Raises:
            ConfigError: this attacker has no white-box access, or the encoder cannot be differentiated.
        """
        if not self.white_box:
            raise ConfigError(
                "the encoder cannot be differentiated by this attacker; use an attack that only needs pairs, "
                "such as strong, ridge or nearest"
            )
        with evaluating(self._model, gradients=True):
            return self._model.features(x.to(self.device)).float()

    def encode_repeated(
        self,
        x: Tensor,
        *,
        queries: int,
        noise: Noise = "fresh",
        duplicates: Duplicates = "exact",
        generator: torch.Generator | None = None,
        key: bytes = b"device",
    ) -> Tensor:
        """What leaves the device when x is sent `queries` times, (n, K, ...); see `attacks.encode_repeated`."""
        return encode_repeated(
            self._model,
            x.to(self.device),
            queries=queries,
            noise=noise,
            duplicates=duplicates,
            generator=generator,
            key=key,
        )


@dataclass(frozen=True)
class Fit:
    """How an attack's training went.

    Attributes:
        converged: whether more training would probably not have helped; where False the error is no evidence.
        reason: one sentence, for a reader.
        held_out_mse: error on images of the attacker's set that it did not learn from.
        trivial_mse: error of answering with the mean image on the same images; None where nothing was judged by it.
    """

    converged: bool
    reason: str
    held_out_mse: float
    trivial_mse: float | None = None


class Attack(ABC):
    """Base of every attack: `fit(observer)`, then `reconstruct(z)`.

    Attributes:
        config: settings, a frozen dataclass.
        outcome: how the training went, once fitted.
        history: one line of figures per epoch, for attacks that train; else empty.
        seconds: the training took, over all calls.
        most_images: how many images `reconstruct` can afford; None where it takes no time to speak of.
        deadline: `time.monotonic()` at which a training ends with what it has; None trains to the end.
    """

    name: ClassVar[str]
    config: Any
    outcome: Fit | None = None
    seconds: float = 0.0
    most_images: int | None = None
    deadline: float | None = None

    def __init__(self, config: Any) -> None:
        self.config = config
        self.history: list[dict[str, float]] = []

    @abstractmethod
    def fit(
        self,
        observer: Observer,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Self:
        """Learn to invert from what the observer hands out.

        Args:
            observer: what the attacker may see.
            progress: called after every epoch.
            state: checkpoint file of attacks that train for longer than seconds.
            should_stop: asked often; True saves and leaves.

        Raises:
            ConfigError: the observer hands out less than this attack needs.
            Interrupted: `should_stop` said so; the same call goes on from `state`.
        """

    @abstractmethod
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) released features -> (N, C, H, W) images in [0, 1].

        Raises:
            NotFittedError: `fit` has not been called.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What the fitted attack consists of, as tensors."""


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the attacker's images that only judge, and of those to learn from.

    Raises:
        ConfigError: fewer than 2 images.
    """
    order = torch.randperm(count, generator=generator(seed, "hold-out"))
    held = max(1, round(share * count))
    if held >= count:
        raise ConfigError(f"an attack needs at least 2 images, got {count}")
    return order[:held], order[held:]
