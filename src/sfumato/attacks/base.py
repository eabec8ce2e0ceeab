"""The parts of a threat model as objects: an observer hands out what the attacker may see, an attack uses it."""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfumato.attacks.activations import Activation, activations, cloud_activations
from sfumato.attacks.queries import encode_repeated
from sfumato.attacks.whitening import Whitening, whiten
from sfumato.data import ImageSet
from sfumato.errors import ConfigError, NotFittedError, SfumatoError
from sfumato.noise import Noise
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["Attack", "Fit", "Job", "Observer", "Progress", "TooSlow", "hold_out"]

Progress = Callable[[int, int, dict[str, float]], None]
"""`(done, total, figures)`, called after every epoch of an attack."""


_SAMPLE = 8192  # images at most from which the whitening is told,
_VALUES = 2**25  # and so many values of their features
_AT_ONCE = 2**24  # values of features encoded in one batch


class Observer:
    """The paper's worst case: the training set, the whole split model, and what crosses the wire.

    Features come from `SplitModel.encode` and the channel's own release alone, so an attacker sees them after clipping,
    noise and quantisation, never before, and every call draws fresh noise. What is handed out is whitened
    (`attacks.whitening`), so that no attack depends on units. Weaker attackers are subclasses that hand out less
    (`sfumato.attacks.knowledge`): they override `release`.

    Args:
        model: the victim; it runs in evaluation mode, and keeps the mode it has. Its edge may be any module, also one
            that cannot be differentiated.
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
        self._names: tuple[str, ...] = ()
        with evaluating(model):
            self.feature_shape = tuple(model.encode(self.pixels(torch.arange(1))).shape[1:])

    @property
    def noise(self) -> Noise:
        """The channel's noise, as this attacker believes it to be."""
        return self._model.channel.noise

    @property
    def noise_std(self) -> float:
        """The standard deviation of that noise on a coordinate."""
        return self.noise.rms

    @property
    def plain_noise(self) -> Noise | None:
        """`noise` where nothing else happens to a feature on its way; None where the noise has to be measured."""
        channel = self._model.channel
        plain = channel.quantize_bits is None and not channel.stochastic_transforms and not self._names
        return self.noise if plain else None

    @property
    def repeats(self) -> bool:
        """Whether the same image always gives this attacker the same, so that asking again is in vain."""
        return not self.encodes or (self.noise_std == 0 and not self._model.channel.stochastic_transforms)

    @property
    def has_encoder(self) -> bool:
        """Whether this attacker can compute `features` of images of its own."""
        return self._white_box is not False and not self._names

    @property
    def at_the_wire(self) -> bool:
        """Whether this attacker looks at what leaves the device, and not at what the cloud computes from it."""
        return not self._names

    @cached_property
    def white_box(self) -> bool:
        """Whether `features` can be differentiated by this attacker."""
        if not self.has_encoder:
            return False
        x = self.pixels(torch.arange(1)).requires_grad_()
        try:
            with torch.enable_grad(), evaluating(self._model, gradients=True):
                z_hat = self._model.features(x)
            (slope,) = torch.autograd.grad(z_hat.sum(), x, allow_unused=True)
        except RuntimeError:  # an encoder outside of PyTorch has no graph
            return False
        return slope is not None and bool(slope.isfinite().all())

    @cached_property
    def whitening(self) -> Whitening:
        """Of this attacker's features, told from its own images; the same at every call."""
        size = math.prod(self.feature_shape)
        most = min(len(self), _SAMPLE, max(8, _VALUES // size))
        some = torch.randperm(len(self), generator=generator(0, "whitening"))[:most]
        draws: list[Tensor | None] = []
        # Two releases of the same images where the noise is not known: what both share is signal.
        for number in range(1 if self.plain_noise is not None or self.repeats else 2):
            noise = generator(0, "whitening", number, device=self.device)
            draws.append(torch.cat([self._flat(self.record(part, noise)[1]) for part in self.parts(some)]))
        return whiten(draws[0], draws[1] if len(draws) > 1 else None, self.plain_noise)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, indices: Tensor) -> Sequence[Tensor]:
        """`indices` in batches whose features fit into memory."""
        return indices.split(max(1, min(512, _AT_ONCE // math.prod(self.feature_shape))))

    def pixels(self, indices: Tensor) -> Tensor:
        """The attacker's images as floats in [0, 1], (n, C, H, W)."""
        return self._pixels[indices.to(self.device)].float().div_(255)

    def release(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What leaves the device for images x, as it is, with fresh noise."""
        with evaluating(self._model):
            return self._model.encode(x.to(self.device), generator)

    def record(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The attacker's images at `indices` and what left the device for them, as it is."""
        x = self.pixels(indices)
        return x, self.release(x, generator)

    def seen(self, z: Tensor) -> Tensor:
        """What this attacker makes of releases z (n, ...): whitened, (n, *feature_shape) float32."""
        return self.whitening(self._flat(z)).reshape(len(z), *self.feature_shape)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`seen` of what leaves the device for images x, with fresh noise."""
        return self.seen(self.release(x, generator))

    def pairs(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The attacker's images at `indices` and `seen` of what left the device for them."""
        x, z = self.record(indices, generator)
        return x, self.seen(z)

    def features(self, x: Tensor) -> Tensor:
        """`seen` of z_hat for images x (n, C, H, W): the view of an attacker who has the encoder.

        It is computed without the device, for images of the attacker's own. It never is the feature of a victim's
        image, of which only `encode` says something. Differentiable with respect to x where `white_box`.

        Raises:
            ConfigError: this attacker has no encoder.
        """
        if not self.has_encoder:
            raise ConfigError(
                "this attacker has no encoder to compute features with; use an attack that only needs pairs, "
                "such as strong, ridge or nearest"
            )
        with evaluating(self._model, gradients=True):
            return self.seen(self._model.features(x.to(self.device)))

    def classify(self, z: Tensor) -> Tensor:
        """What the cloud answers to releases z, differentiable with respect to z."""
        with evaluating(self._model.cloud, gradients=True):
            answer: Tensor = self._model.cloud(z)
        return answer

    def inside(self, *names: str) -> "Observer":
        """The same attacker, who looks at what the cloud computes from a release instead of at the release.

        Args:
            names: of `attacks.cloud_activations`; several are put side by side.

        Raises:
            ConfigError: the cloud computes nothing of that name.
        """
        other = copy.copy(self)
        for told in ("whitening", "white_box"):
            vars(other).pop(told, None)
        other._names = names
        noise = generator(0, "inside", device=self.device)
        other.feature_shape = (other._flat(self.record(torch.arange(1), noise)[1]).shape[1],)
        return other

    def activations(self) -> list[Activation]:
        """What the cloud computes from what leaves the device, by the names that `inside` takes."""
        return cloud_activations(self._model, self.pixels(torch.arange(2)))

    def activated(self, indices: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What the cloud computes from one release of the attacker's images at `indices`, (n, D) as it is."""
        z = self.record(indices, generator(0, "activated", device=self.device))[1]
        return activations(self._model.cloud, z, names)

    def _flat(self, z: Tensor) -> Tensor:
        if not self._names:
            return z.flatten(1)
        found = activations(self._model.cloud, z.to(self.device), self._names)
        return torch.cat([found[name] for name in self._names], 1)

    def encode_repeated(
        self, x: Tensor, *, queries: int, generator: torch.Generator | None = None, **plan: Any
    ) -> Tensor:
        """What leaves the device when x is sent `queries` times, (n, K, ...); see `attacks.encode_repeated`."""
        return encode_repeated(self._model, x.to(self.device), queries=queries, generator=generator, **plan)


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


@dataclass(frozen=True)
class Job:
    """How a fit is watched, stopped and resumed: the arguments of `Attack.fit`."""

    progress: Progress | None = None
    state: Path | None = None
    should_stop: Callable[[], bool] | None = None

    def tell(self, done: int, total: int, **figures: float) -> None:
        """Call `progress` if there is one."""
        if self.progress is not None:
            self.progress(done, total, figures)

    def stopped(self) -> bool:
        """Whether to save and leave."""
        return self.should_stop is not None and self.should_stop()


class TooSlow(SfumatoError):
    """A training of which too little fits until its deadline.

    Attributes:
        share: of its fewest epochs, how much would fit.
    """

    def __init__(self, share: float) -> None:
        super().__init__(f"until its deadline only {share:.2g} of its fewest epochs fit; give it more time")
        self.share = share


class Attack(ABC):
    """Base of every attack: `fit(observer)`, then `reconstruct(z)`. A leaf gives `learn`, `answer` and `tensors`.

    Attributes:
        config: settings, a frozen dataclass.
        outcome: how the training went, once fitted.
        history: one line of figures per epoch, for attacks that train; else empty.
        seconds: the training took, over all calls.
        most_images: how many images `reconstruct` can afford; None where it takes no time to speak of.
        deadline: `time.monotonic()` at which a training ends with what it has; None trains to the end.
        fewest: epochs below which a training with a deadline is not begun.
        weaker: whether it makes do with less than the paper's attacker has, and is never the figure of a suite.
    """

    name: ClassVar[str]
    settings: ClassVar[type[Any]]
    weaker: ClassVar[bool] = False
    config: Any
    outcome: Fit | None = None
    seconds: float = 0.0
    most_images: int | None = None
    deadline: float | None = None
    fewest: int = 1

    def __init__(self, config: Any = None) -> None:
        self.config = self.settings() if config is None else config
        self.history: list[dict[str, float]] = []
        self._observer: Observer | None = None

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
            Interrupted: `should_stop` said so; the same call resumes from `state`.
        """
        began = time.monotonic()
        self.learn(observer, Job(progress, state, should_stop))
        self.seconds = self.seconds or time.monotonic() - began
        self._observer = observer
        return self

    @torch.no_grad()
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) features as they left the device -> (N, C, H, W) images in [0, 1].

        Raises:
            NotFittedError: `fit` has not been called.
        """
        return self.answer(self._fitted().seen(z))

    def weights(self) -> dict[str, Tensor]:
        """What the fitted attack consists of: its tensors, and how it whitens a release.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        return {**self._fitted().whitening.tensors(), **self.tensors()}

    @abstractmethod
    def learn(self, observer: Observer, job: Job) -> None:
        """`fit` of this attack; sets `outcome`."""

    @abstractmethod
    def answer(self, seen: Tensor) -> Tensor:
        """`reconstruct` from what the observer makes of releases (`Observer.seen`), (N, *feature_shape)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What was learned."""

    def _fitted(self) -> Observer:
        if self._observer is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return self._observer


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
