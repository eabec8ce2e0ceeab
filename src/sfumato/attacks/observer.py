"""The threat model as an object: an observer hands out what the attacker may see, and nothing else."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import cached_property
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from sfumato.attacks.activations import Activation, activations, cloud_activations
from sfumato.attacks.whitening import Whitening, whiten
from sfumato.data import ImageSet
from sfumato.errors import ConfigError, Interrupted
from sfumato.noise import Noise
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["Observer"]

_SAMPLE = 8192  # images at most from which the whitening is told,
_VALUES = 2**25  # and so many values of their features
_AT_ONCE = 2**24  # values of features encoded in one batch
_KEPT = 2**26  # values of clean features that are kept, 256 MiB
_CHUNK = 64  # images whose clean features are computed together
_ASK = 0.2  # seconds between two questions while a thread computes


class Observer:
    """The paper's worst case: the training set, the whole split model, and what crosses the wire.

    Features come from `SplitModel.encode` and the channel's own release alone, so an attacker sees them after clipping,
    noise and quantisation, never before, and every call draws fresh noise. What is handed out is whitened
    (`attacks.whitening`), so that no attack depends on units. Weaker attackers are subclasses that hand out less
    (`sfumato.attacks.knowledge`): they override `release` and `record`.

    Args:
        model: the victim; it runs in evaluation mode, and keeps the mode it has. Its edge may be any module, also one
            that cannot be differentiated.
        images: the attacker's images: the victim's training set.
        white_box: whether the attacker may look into the encoder; None says yes where it can be differentiated.

    Attributes:
        should_stop: what is asked at the moment; see `asking`.
        encodes: whether the attacker can have images of its own making encoded (turned, shifted, the same one twice).

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> x, z = Observer(model, digits).pairs(torch.arange(1000), torch.Generator().manual_seed(0))
    >>> print(tuple(z.shape), f"{z.square().mean():.2f}")  # the share of signal in the variance of what leaves
    (1000, 64) 0.54
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
        self.should_stop: Callable[[], bool] | None = None
        with evaluating(model):
            x = self.pixels(torch.arange(1))
            self.feature_shape = tuple(model.encode(x).shape[1:])
            # An encoder that draws numbers of its own is asked every time: what it draws is no constant to learn.
            steady = torch.equal(model.features(x), model.features(x))
        self._keeps = steady and len(self) * math.prod(self.feature_shape) <= _KEPT
        self._kept: dict[str, Tensor] = {}  # shared with the views of `inside`

    @contextmanager
    def asking(self, should_stop: Callable[[], bool] | None) -> Iterator[None]:
        """Inside, whoever takes images or computes features of images asks `should_stop` first."""
        before, self.should_stop = self.should_stop, should_stop
        try:
            yield
        finally:
            self.should_stop = before

    def ask(self) -> None:
        """Leave where `should_stop` says so.

        Raises:
            Interrupted: it does.
        """
        if self.should_stop is not None and self.should_stop():
            raise Interrupted("the attack was stopped; the same command resumes there")

    def patiently(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`function(*args, **options)`, asking all the while: nobody can stop a decomposition of a large matrix."""
        if self.should_stop is None:
            return function(*args, **options)
        done: Future[Any] = Future()

        def work() -> None:
            try:
                done.set_result(function(*args, **options))
            except BaseException as error:
                done.set_exception(error)

        Thread(target=work, daemon=True).start()
        while not done.done():
            self.ask()
            wait([done], _ASK)
        return done.result()

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
        plain = channel.quantize_bits is None and not channel.stochastic_transforms and self.at_the_wire
        return self.noise if plain else None

    @property
    def repeats(self) -> bool:
        """Whether the same image always gives this attacker the same, so that asking again is in vain."""
        return not self.encodes or (self.noise_std == 0 and not self._model.channel.stochastic_transforms)

    @property
    def at_the_wire(self) -> bool:
        """Whether this attacker looks at what leaves the device, and not at what the cloud computes from it."""
        return not self._names

    @property
    def has_encoder(self) -> bool:
        """Whether this attacker can compute `features` of images of its own."""
        return self._white_box is not False and self.at_the_wire

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
        most = min(len(self), _SAMPLE, max(8, _VALUES // math.prod(self.feature_shape)))
        some = torch.randperm(len(self), generator=generator(0, "whitening"))[:most]
        draws = []
        # Two releases of the same images where the noise is not known: what both share is signal.
        for number in range(1 if self.plain_noise is not None or self.repeats else 2):
            noise = generator(0, "whitening", number, device=self.device)
            draws.append(torch.cat([self._flat(self.record(part, noise)[1]) for part in self.parts(some)]))
        return self.patiently(whiten, draws[0], draws[1] if len(draws) > 1 else None, self.plain_noise)

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, indices: Tensor) -> Sequence[Tensor]:
        """`indices` in batches whose features fit into memory."""
        return indices.split(max(1, min(512, _AT_ONCE // math.prod(self.feature_shape))))

    def pixels(self, indices: Tensor) -> Tensor:
        """The attacker's images as floats in [0, 1], (n, C, H, W)."""
        self.ask()
        return self._pixels[indices.to(self.device)].float().div_(255)

    def release(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What leaves the device for images x, as it is, with fresh noise."""
        with evaluating(self._model):
            return self._model.encode(x.to(self.device), generator)

    def record(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The attacker's images at `indices` and what left the device for them, as it is."""
        x = self.pixels(indices)
        with evaluating(self._model):
            return x, self._model.channel.release(self._clean(indices), generator)

    def _clean(self, indices: Tensor) -> Tensor:
        """z_hat of the attacker's images, the same at every call: only the noise is fresh.

        Kept where all fit. Which images are computed together depends on their places alone, so that an attack which
        was interrupted sees the same to the last bit.
        """
        if not self._keeps:
            return self._model.features(self.pixels(indices))
        for chunk in (indices // _CHUNK).unique().tolist():
            rows = torch.arange(chunk * _CHUNK, min(len(self), (chunk + 1) * _CHUNK))
            if self._kept and bool(self._kept["known"][rows[0]]):
                continue
            found = self._model.features(self.pixels(rows))
            if not self._kept:
                self._kept["z_hat"] = found.new_empty((len(self), *found.shape[1:]))
                self._kept["known"] = torch.zeros(len(self), dtype=torch.bool)
            self._kept["z_hat"][chunk * _CHUNK : chunk * _CHUNK + len(rows)] = found
            self._kept["known"][rows] = True
        return self._kept["z_hat"][indices.to(self.device)]

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
        self.ask()
        with evaluating(self._model, gradients=True):
            return self.seen(self._model.features(x.to(self.device)))

    def classify(self, z: Tensor) -> Tensor:
        """What the cloud answers to releases z, differentiable with respect to z."""
        self.ask()
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
        if self.at_the_wire:
            return z.flatten(1)
        found = activations(self._model.cloud, z.to(self.device), self._names)
        return torch.cat([found[name] for name in self._names], 1)
