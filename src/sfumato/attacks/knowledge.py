"""What an attacker knows, from the paper's worst case down to a few pairs, and the observers that hand it out."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.attacks.base import Observer
from sfumato.attacks.queries import Duplicates, Noise
from sfumato.data import ImageSet
from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.seeds import generator
from sfumato.split import Channel, SplitModel

__all__ = ["Knowledge", "Narrowed", "NoiseObserver", "PairsObserver", "observe"]


@dataclass(frozen=True)
class Knowledge:
    """What an attacker has.

    Attributes:
        fraction: share of the images (of the training set, or of another set that it has instead).
        pairs: only so many images with one recorded release each: it can neither encode others nor look into the
            encoder; None lets it encode what it likes.
        noise_std: what it takes the channel's noise for; None knows it.
        noise_up_to: with `noise_std` the ends of a range, each simulated release drawing its own level in between.
        white_box: whether it has the encoder's weights.
        other_data: whether its images are another data set instead of the training set.
        seed: of the choice of images.

    Raises:
        ConfigError: a value is out of its range.
    """

    fraction: float = 1.0
    pairs: int | None = None
    noise_std: float | None = None
    noise_up_to: float | None = None
    white_box: bool = True
    other_data: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"the attacker's fraction of the images is {self.fraction}; give above 0 up to 1")
        if self.pairs is not None and self.pairs < 2:
            raise ConfigError(f"the attacker has {self.pairs} pairs; give at least 2")
        if self.noise_std is not None and self.noise_std < 0:
            raise ConfigError(f"the attacker's noise is {self.noise_std}; give 0 or more")
        if self.noise_up_to is not None and (self.noise_std is None or self.noise_up_to < self.noise_std):
            raise ConfigError("noise_up_to is the upper end of a range; give noise_std as its lower end")
        if self.pairs is not None and self.noise_std is not None:
            raise ConfigError("an attacker with recorded pairs simulates no noise; leave out pairs or noise_std")

    def describe(self) -> str:
        """In words."""
        whose = "another data set" if self.other_data else "the training set"
        parts = [whose if self.fraction == 1 else f"{self.fraction:g} of {whose}"]
        if self.pairs is not None:
            return f"{self.pairs} recorded pairs from {parts[0]}, no access to the encoder"
        if self.noise_up_to is not None:
            parts.append(f"noise taken for {self.noise_std:g} to {self.noise_up_to:g}")
        elif self.noise_std is not None:
            parts.append(f"noise taken for {self.noise_std:g}")
        if not self.white_box:
            parts.append("encoder as a black box")
        return ", ".join(parts)


class Narrowed(Observer):
    """An observer that hands out what another one does; subclasses hand out less."""

    def __init__(self, inner: Observer) -> None:
        self.__dict__.update({name: value for name, value in vars(inner).items() if name != "white_box"})
        self.inner = inner
        self.encodes = inner.encodes

    @property
    def noise_std(self) -> float:
        """As the inner observer believes it to be."""
        return self.inner.noise_std

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the inner observer hands out."""
        return self.inner.encode(x, generator)

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
        """Repeated exact queries go through `encode`, so that they show no more than it does."""
        if noise == "fresh" and duplicates == "exact":
            return torch.stack([self.encode(x, generator) for _ in range(queries)], 1)
        raise ConfigError("this attacker can only repeat exact queries with fresh noise")


class NoiseObserver(Narrowed):
    """An attacker who simulates releases at a noise level that may be wrong, or at one drawn for each image.

    The noise comes before the true channel's quantiser, whose grid is known. Random transforms act as they do.
    """

    def __init__(self, inner: Observer, low: float, high: float | None = None) -> None:
        super().__init__(inner)
        self._low, self._high = low, low if high is None else high
        channel = self._model.channel
        silent = copy.copy(channel)
        silent.noise_std, silent.quantize_bits = 0.0, None
        self._silent = SplitModel(self._model.edge, silent, self._model.cloud)
        lowest, highest = channel.quantization_range
        self._grid = Channel(quantize_bits=channel.quantize_bits, low=lowest, high=highest)

    @property
    def noise_std(self) -> float:
        """The middle of the believed range."""
        return (self._low + self._high) / 2

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What this attacker takes for a release."""
        with evaluating(self._silent):
            z = self._silent.encode(x.to(self.device), generator)
        where = z.device if generator is None else generator.device
        share = torch.rand(len(z), generator=generator, device=where).to(z)
        noise = torch.randn(z.shape, generator=generator, device=where).to(z)
        level = (self._low + share * (self._high - self._low)).reshape(-1, *(1,) * (z.ndim - 1))
        return self._grid.release(z + level * noise).float()


class PairsObserver(Narrowed):
    """An attacker who recorded one release of each of a few known images, and can encode nothing."""

    def __init__(self, inner: Observer, seed: int = 0) -> None:
        super().__init__(inner)
        self.encodes = False
        self._white_box = False
        noise = generator(seed, "pairs", device=inner.device)
        parts = torch.arange(len(inner)).split(512)
        self._recorded = torch.cat([inner.pairs(part, noise)[1] for part in parts])

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("this attacker has only recorded pairs and can encode nothing; use `pairs`")

    def pairs(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The known images at `indices` and what was recorded for them; the same at every call."""
        return self.pixels(indices), self._recorded[indices.to(self.device)]


def observe(
    model: SplitModel,
    images: ImageSet,
    knowledge: Knowledge | None = None,
    *,
    other: ImageSet | None = None,
    device: torch.device | str = "cpu",
) -> Observer:
    """The observer of an attacker with this knowledge.

    Args:
        model: the victim.
        images: its training set.
        knowledge: None means the paper's worst case.
        other: the data set that an attacker with `other_data` has; of the victim's image shape.
        device: where to compute.

    Raises:
        ConfigError: another data set is asked for and not given, or its images have another shape.
    """
    knowledge = knowledge or Knowledge()
    if knowledge.other_data:
        if other is None:
            raise ConfigError("an attacker with another data set needs one; give it as `other`")
        if other.image_shape != images.image_shape:
            raise ConfigError(
                f"the attacker's images are {other.image_shape}, the victim's {images.image_shape}; resize them"
            )
        images = other
    count = max(2, round(knowledge.fraction * len(images)))
    if knowledge.pairs is not None:
        count = min(count, knowledge.pairs)
    if count < len(images):
        order = torch.randperm(len(images), generator=generator(knowledge.seed, "knowledge"))
        images = images.subset(order[:count])
    observer = Observer(model, images, device=device, white_box=None if knowledge.white_box else False)
    if knowledge.pairs is not None:
        return PairsObserver(observer, knowledge.seed)
    if knowledge.noise_std is not None:
        return NoiseObserver(observer, knowledge.noise_std, knowledge.noise_up_to)
    return observer
