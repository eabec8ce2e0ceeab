"""What an attacker knows, from the paper's worst case down to a few pairs, and the observers that hand it out."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.attacks.observer import Observer
from sfumato.attacks.queries import Queries, encode_repeated
from sfumato.data import ImageSet
from sfumato.errors import ConfigError
from sfumato.noise import Noise
from sfumato.seeds import generator
from sfumato.settings import check_settings
from sfumato.split import Channel, SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["Knowledge", "Narrowed", "NoiseObserver", "PairsObserver", "QueryObserver", "observe"]


_CHUNK = 64  # images whose K answers are held at once


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

    >>> Knowledge(fraction=0.1).pairs is None
    True
    """

    fraction: float = 1.0
    pairs: int | None = None
    noise_std: float | None = None
    noise_up_to: float | None = None
    white_box: bool = True
    other_data: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, least={"pairs": 2, "noise_std": 0}, above={"fraction": 0})
        if self.fraction > 1:
            raise ConfigError(f"the attacker's fraction of the images is {self.fraction}; give at most 1")
        if self.noise_up_to is not None and (self.noise_std is None or self.noise_up_to < self.noise_std):
            raise ConfigError("noise_up_to is the upper end of a range; give noise_std as its lower end")
        if self.pairs is not None and self.noise_std is not None:
            raise ConfigError("an attacker with recorded pairs simulates no noise; leave out pairs or noise_std")


class Narrowed(Observer):
    """An observer that hands out what another one does; subclasses hand out less."""

    def __init__(self, inner: Observer) -> None:
        told = ("white_box", "whitening")
        vars(self).update({name: value for name, value in vars(inner).items() if name not in told})
        self.inner = inner

    @property
    def noise(self) -> Noise:
        """As the inner observer believes it to be."""
        return self.inner.noise

    def record(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The attacker's images at `indices` and what `release` makes of them."""
        x = self.pixels(indices)
        return x, self.release(x, generator)


class QueryObserver(Narrowed):
    """What an attacker sees who has every image sent K times and averages the answers, in any form of `Queries`.

    It learns from its own images, sent in the same form under keys of its own: the mean of K answers that it learns
    from is distributed like the one that it has of a victim. The mean is a sufficient statistic for exact repeats under
    Gaussian noise; for near-duplicates it is one attack.

        seen = QueryObserver(observer, Queries(16, noise="memoised", duplicates="levels"))
        attack = RidgeAttack().fit(seen)
        found = invert(attack, model, images, release=seen.asked)

    Raises:
        ConfigError: the observer is already that of a weaker attacker.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = SplitModel(torch.nn.Flatten(), Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> print(f"{QueryObserver(Observer(model, digits), Queries(16)).noise_std:.3f}")
    0.025
    """

    def __init__(self, inner: Observer, plan: Queries) -> None:
        if isinstance(inner, Narrowed):
            raise ConfigError("repeated queries are those of an attacker who can encode; give it a plain Observer")
        super().__init__(inner)
        self.plan = plan

    @property
    def noise(self) -> Noise:
        """The noise of the mean."""
        return self.inner.noise.scaled(self.plan.noise_factor)

    @property
    def plain_noise(self) -> Noise | None:
        """As `Observer.plain_noise`; near-duplicates differ by more than noise."""
        return super().plain_noise if self.plan.duplicates in ("exact", "devices") else None

    def release(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean of the answers to K queries under a key that nobody has used before."""
        where = self.device if generator is None else generator.device
        key = bytes(torch.randint(256, (16,), generator=generator, device=where).tolist())
        # All K answers are the same one, and under a key of its own its noise is fresh.
        if self.plan.noise == "memoised" and self.plan.duplicates == "exact":
            return super().release(x, generator)
        return self.asked(x, generator, key)

    def asked(self, x: Tensor, generator: torch.Generator | None = None, key: bytes = b"device") -> Tensor:
        """The mean of a victim's answers for images x, with the device's key: what `invert` takes as `release`."""
        found = []
        for part in x.to(self.device).split(_CHUNK):
            self.ask()
            answers = encode_repeated(
                self._model, part, queries=self.plan.queries, noise=self.plan.noise,
                duplicates=self.plan.duplicates, generator=generator, key=key,
            )  # fmt: skip
            found.append(answers.mean(1))
        return torch.cat(found)


class NoiseObserver(Narrowed):
    """An attacker who simulates releases at a noise level that may be wrong, or at one drawn for each image.

    It knows the shape of the noise, and its level is the standard deviation of a coordinate (`Noise.rms`).
    The noise comes before the true channel's quantiser, whose grid is known. Random transforms act as they do.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = SplitModel(torch.nn.Flatten(), Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> print(f"{NoiseObserver(Observer(model, digits), low=0.1, high=0.3).noise_std:.3f}")
    0.200
    """

    def __init__(self, inner: Observer, low: float, high: float | None = None) -> None:
        super().__init__(inner)
        self._low, self._high = low, low if high is None else high
        channel = self._model.channel
        # Without noise and levels, which follow the noise that this attacker believes in.
        silent = copy.copy(channel)
        silent.noise, silent.quantize_bits = Noise(), None
        self._silent = SplitModel(self._model.edge, silent, self._model.cloud)
        lowest, highest = channel.quantization_range
        self._grid = Channel(quantize_bits=channel.quantize_bits, low=lowest, high=highest)

    @property
    def noise(self) -> Noise:
        """The middle of the believed range, in the shape that the channel's noise has."""
        return self._model.channel.noise.unit().scaled((self._low + self._high) / 2)

    @property
    def plain_noise(self) -> Noise | None:
        """As `Observer.plain_noise`; noise of many levels is not one Gaussian."""
        return super().plain_noise if self._low == self._high else None

    @torch.no_grad()
    def release(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What this attacker takes for a release."""
        with evaluating(self._silent):
            z = self._silent.encode(x.to(self.device), generator)
        where = z.device if generator is None else generator.device
        share = torch.rand(len(z), generator=generator, device=where).to(z)
        noise = self._model.channel.noise.unit().sample(z, generator)
        # One level for each release, not for each of its values: a device has one level at a time.
        level = (self._low + share * (self._high - self._low)).reshape(-1, *(1,) * (z.ndim - 1))
        return self._grid.release(z + level * noise)


class PairsObserver(Narrowed):
    """An attacker who recorded one release of each of a few known images, and can encode nothing.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = SplitModel(torch.nn.Flatten(), Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> seen = PairsObserver(Observer(model, digits))
    >>> float((seen.pairs(torch.arange(5))[1] - seen.pairs(torch.arange(5))[1]).abs().max())  # the same at every call
    0.0
    """

    def __init__(self, inner: Observer, seed: int = 0) -> None:
        super().__init__(inner)
        self.encodes = False
        self._white_box = False
        noise = generator(seed, "pairs", device=inner.device)
        self._recorded = torch.cat([inner.record(part, noise)[1] for part in inner.parts(torch.arange(len(inner)))])

    def release(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("this attacker has only recorded pairs and can encode nothing; use `pairs`")

    def record(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
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

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = SplitModel(torch.nn.Flatten(), Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> len(observe(model, digits, Knowledge(pairs=50)))
    50
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
    # At least 2: one image to learn from, one to judge.
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
