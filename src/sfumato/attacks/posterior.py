"""The posterior: not one image that explains a release, but samples of all that could have been sent."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Observer
from sfumato.attacks.learned import AdamConfig, LearnedAttack, Learner, Turn
from sfumato.attacks.network import Arranged, Sketch
from sfumato.compute import autocast
from sfumato.metrics import mse
from sfumato.seeds import generator
from sfumato.torch_utils import evaluating

__all__ = ["PosteriorAttack", "PosteriorConfig"]

_JUDGED, _JUDGED_SAMPLES, _JUDGED_STEPS = 64, 4, 4  # held-out images, samples of each, and steps, after every epoch
_DENSE = 4  # side of the map at the bottom of the U-Net
_FREQUENCIES = 8


@dataclass(frozen=True, kw_only=True)
class PosteriorConfig(AdamConfig):
    """Settings of the posterior attack.

    Attributes:
        samples: Images drawn for each release. Their mean is the reconstruction.
        flow_steps: Steps from noise to an image.
        images: How many images of a set it is tried on. Each costs `samples` times `flow_steps` passes.

    >>> PosteriorConfig().samples
    16
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.0
    width: int = 32
    blocks: int = 1
    samples: int = 16
    flow_steps: int = 16
    images: int = 256


class PosteriorAttack(LearnedAttack[PosteriorConfig]):
    r"""Conditional flow matching (Lipman et al. 2023) on pairs (z, x): samples from p(x | z).

        u_t = (1 - t) e + t u,  e ~ N(0, I),  u = (x - l(z)) / s;    minimise  E |v(u_t, t, z) - (u - e)|^2
        sample:  u_0 ~ N(0, I),  du/dt = v(u, t, z),  x = l(z) + s u_1, clipped to [0, 1]

    with the linear attack l and its root mean squared error s: the flow only learns what the linear attack leaves open,
    and begins where a jointly Gaussian problem ends. v is a small U-Net. The mean of the samples approaches the
    posterior mean, the answer with the smallest squared error; a single sample shows what people would see: sharp, and
    as wrong as the release leaves room for. `spread` says where.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train.subset(torch.arange(200))
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> attack = PosteriorAttack(PosteriorConfig(epochs=1, width=4)).fit(Observer(model, digits))
    >>> tuple(attack.samples(model.encode(digits.float(range(5))), 3).shape)
    (3, 5, 1, 8, 8)
    """

    name: ClassVar[str] = "posterior"
    settings: ClassVar[type[Any]] = PosteriorConfig

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        return {"net": _Flow(observer, self.config)}

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        flow = cast(_Flow, learner.net)
        drawn = torch.randn(turn.x.shape, generator=turn.random("start"), device=turn.x.device)
        t = torch.rand(len(turn.x), 1, 1, 1, generator=turn.random("time"), device=turn.x.device)
        sketch = flow.sketch(turn.z)
        u = (turn.x - sketch) / flow.scale
        with autocast(turn.x.device, turn.bf16):
            velocity = flow(torch.lerp(drawn, u, t), t, flow.condition(turn.z, sketch))
        loss = (velocity.float() - (u - drawn)).square().mean()
        self._descend(learner, loss)
        # With v the error of the answer at time t is (1 - t) times that of v.
        remaining = (1 - t) * flow.scale * (velocity.float() - (u - drawn))
        return remaining.square().mean().detach()[None]

    def _judge(self, net: nn.Module, observer: Observer, judge: Tensor, bf16: bool) -> float:
        """The error of the mean of a few samples, in few steps: more would take longer than the epoch itself."""
        x, z = observer.pairs(judge[:_JUDGED], generator(self.config.seed, "judge", device=observer.device))
        steps = min(_JUDGED_STEPS, self.config.flow_steps)
        found = self._draw(cast(_Flow, net), z, _JUDGED_SAMPLES, steps, observer.ask)
        return float(mse(x, torch.stack(list(found)).mean(0)).double().mean())

    @torch.no_grad()
    def samples(self, z: Tensor, count: int | None = None) -> Tensor:
        """(N, ...) features as they left the device -> (count, N, C, H, W) images in [0, 1] from p(x | z).

        The i-th samples of all images begin with the same noise, so that an image gets what it would get alone.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        return torch.stack(list(self._samples(self._fitted().seen(z), count)))

    def spread(self, z: Tensor, count: int | None = None) -> Tensor:
        """(N, ...) -> (N, C, H, W): the standard deviation of each pixel over the samples, in grey values."""
        return self.samples(z, count).std(0)

    @torch.no_grad()
    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1]: the mean of the samples."""
        count = self.config.samples
        return torch.cat([sum(self._samples(part), torch.zeros(())) / count for part in seen.split(256)])

    def _samples(self, seen: Tensor, count: int | None = None) -> Iterator[Tensor]:
        flow, cfg = cast(_Flow, self.net), self.config
        return self._draw(flow, seen, count or cfg.samples, cfg.flow_steps, self._fitted().ask)

    def _draw(self, flow: "_Flow", seen: Tensor, count: int, steps: int, ask: Callable[[], None]) -> Iterator[Tensor]:
        """One sample of every image after the other, by Heun's method."""
        step = 1 / steps
        sketch = flow.sketch(seen)
        condition = flow.condition(seen, sketch)
        for number in range(count):
            drawn = torch.randn(sketch.shape[1:], generator=generator(self.config.seed, "sample", number // 2))
            u = (drawn if number % 2 else -drawn).to(seen).expand_as(sketch)  # in pairs: less is left to chance
            with evaluating(flow):
                for at in torch.arange(steps) * step:
                    ask()
                    slope = flow(u, at.to(u).expand(len(u), 1, 1, 1), condition)
                    ahead = flow(u + step * slope, (at + step).to(u).expand(len(u), 1, 1, 1), condition)
                    u = u + step * (slope + ahead) / 2
            yield (sketch + flow.scale * u).clamp(0, 1)


class _Flow(nn.Module):
    """The velocity: a U-Net over the noisy image, what the linear attack reads and the feature laid out beside it."""

    def __init__(self, observer: Observer, config: PosteriorConfig) -> None:
        super().__init__()
        self.sketch = Sketch(observer, config.hold_out, config.seed)
        self.scale = self.sketch.error**0.5
        self.arranged = Arranged(observer)
        channels, height, width = observer.image_shape
        shape = observer.feature_shape
        self.lay_out: nn.Module = nn.Identity()
        if len(shape) != 3:
            self.lay_out = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8 * 16), nn.Unflatten(1, (8, 4, 4)))
            shape = (8, 4, 4)
        self.size = (height, width)
        w = config.width
        self.read = nn.Conv2d(2 * channels + shape[0], w, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, w), nn.SiLU(), nn.Linear(w, w))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        while max(height, width) > _DENSE:
            height, width = -(-height // 2), -(-width // 2)
            self.down.append(_Block(w, w))
            self.up.append(_Block(2 * w, w))
        self.middle = nn.ModuleList(_Block(w, w) for _ in range(config.blocks))
        # At the bottom every place sees every other, and knows where it is.
        self.dense = nn.Linear(w * height * width, w * height * width)
        self.write = nn.Conv2d(w, channels, 3, padding=1)

    def condition(self, seen: Tensor, sketch: Tensor) -> Tensor:
        """What the velocity knows of the release, (N, ., H, W)."""
        laid = self.lay_out(self.arranged(seen))
        return torch.cat([4 * sketch.clamp(-1, 2) - 2, F.interpolate(laid, self.size, mode="nearest")], 1)

    def forward(self, u: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """(N, C, H, W), (N, 1, 1, 1) and the condition -> (N, C, H, W)."""
        angles = t.flatten(1) * torch.pi * 2 ** torch.arange(_FREQUENCIES, device=t.device) / 2
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.read(torch.cat([u, condition.expand(len(u), -1, -1, -1)], 1))
        beside = []
        for block in self.down:
            h = block(h, time)
            beside.append(h)
            h = F.avg_pool2d(h, 2, ceil_mode=True)
        for block in self.middle:
            h = block(h, time)
        h = h + self.dense(F.silu(h).flatten(1)).reshape(h.shape)
        for block in self.up:
            there = beside.pop()
            h = block(torch.cat([F.interpolate(h, there.shape[2:], mode="nearest"), there], 1), time)
        out: Tensor = self.write(F.silu(h))
        return out


class _Block(nn.Module):
    """Two convolutions, the time in between, and what came in beside them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(outputs, outputs)
        self.norm = nn.GroupNorm(1, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.beside = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(F.silu(x)) + self.time(time)[:, :, None, None]
        out: Tensor = self.second(F.silu(self.norm(h))) + self.beside(x)
        return out
