"""The cloud alone: no pairs and no encoder, only the cloud's half, what arrives there, and images of one's own."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Job, Observer
from sfumato.attacks.knowledge import Narrowed
from sfumato.attacks.learned import AdamConfig, LearnedAttack, Learner, Random, Turn
from sfumato.attacks.network import Inverter
from sfumato.compute import autocast
from sfumato.errors import ConfigError
from sfumato.seeds import generator
from sfumato.torch_utils import evaluating

__all__ = ["CloudOnlyAttack", "CloudOnlyConfig"]


@dataclass(frozen=True, kw_only=True)
class CloudOnlyConfig(AdamConfig):
    """Settings of the attacker who only has the cloud.

    >>> CloudOnlyConfig().blocks
    2
    """

    batch_size: int = 128
    width: int = 32
    blocks: int = 2


class CloudOnlyAttack(LearnedAttack[CloudOnlyConfig]):
    r"""Trains a surrogate of the encoder against the frozen cloud, and a network that inverts the surrogate.

        surrogate s:  minimise  CE(cloud(s(x)), y) + mean_c |m_c(s) - m_c|^2 / D + |V(s) - V|^2 / D
        net:          minimise  MSE(net(s(x) + noise), x)

    with the attacker's own images x and labels y, and per class c the mean m_c, and over all the variances V of
    standardised features: those of s by the labels, those that arrive by the cloud's own classification of them. It
    never sees an image beside what left the device for it: of the observer's images the first half gives only
    features, the second half only images. What it reports on held-out images is its error behind its *own* encoder,
    since it cannot know the other. A weaker attacker than the paper's, shown for scale and never the figure of a suite.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train.subset(torch.arange(200))
    >>> model = sfumato.SplitModel(nn.Flatten(), sfumato.Channel(noise_std=0.1), nn.Linear(64, 10))
    >>> attack = CloudOnlyAttack(CloudOnlyConfig(epochs=1, width=4, blocks=0)).fit(Observer(model, digits))
    >>> [len(line) for line in attack.history], attack.weaker
    ([4], True)
    """

    name: ClassVar[str] = "cloud-only"
    settings: ClassVar[type[Any]] = CloudOnlyConfig
    figures: ClassVar[tuple[str, ...]] = ("mse", "alignment")
    weaker: ClassVar[bool] = True

    def learn(self, observer: Observer, job: Job) -> None:
        """Take note of what arrives, then train both networks."""
        if not observer.at_the_wire:
            raise ConfigError("the cloud-only attack starts from what arrives, not from what the cloud computes of it")
        arriving, own = torch.arange(len(observer)).tensor_split(2)
        noise = generator(self.config.seed, "arrived", device=observer.device)
        z = torch.cat([observer.record(part, noise)[1] for part in observer.parts(arriving)])
        classes = torch.cat([observer.classify(part).flatten(1).argmax(1).detach() for part in z.split(512)])
        flat = z.flatten(1).float()
        # A coordinate that never changes is left at 0, and not divided by it.
        self._centre, self._scale = flat.mean(0), flat.std(0, correction=0).clamp_min(1e-8)
        flat = self._standard(flat)
        self._variance = flat.square().mean(0)
        self._class_means = {int(one): flat[classes == one].mean(0) for one in classes.unique()}
        super().learn(_Own(observer, own), job)

    def _standard(self, flat: Tensor) -> Tensor:
        return (flat - self._centre) / self._scale

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        assert isinstance(observer, _Own)
        cfg, self._own = self.config, observer
        observer.surrogate = _Surrogate(observer, cfg.width, self._centre, self._scale)
        return {"net": Inverter(observer, None, width=cfg.width, blocks=cfg.blocks), "surrogate": observer.surrogate}

    def _batch(self, observer: Observer, indices: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        return observer.pixels(indices), observer.images.labels[indices].to(observer.device)

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        labels = turn.z
        with autocast(turn.x.device, turn.bf16):
            z_hat = learner.networks["surrogate"](turn.x).float()
        z = z_hat + self._own.noise.sample(z_hat, turn.random("noise"))
        answer = self._own.classify(z).flatten(1)
        flat = self._standard(z.flatten(1))
        # Class means and one variance: what can be compared without an image beside its release.
        alignment = (flat.square().mean(0) - self._variance).square().mean()
        for one in labels.unique():
            if int(one) in self._class_means:
                gap = flat[labels == one].mean(0) - self._class_means[int(one)]
                alignment = alignment + gap.square().mean() / len(self._class_means)
        with autocast(turn.x.device, turn.bf16):
            x_hat = learner.net(self._own.seen(z.detach()))
        error = (x_hat.float() - turn.x).square().mean()
        loss = error + alignment
        if int(labels.max()) < answer.shape[1]:
            loss = loss + F.cross_entropy(answer, labels)
        # The cloud is frozen: only the attacker's networks learn.
        learning = [value for network in learner.networks.values() for value in network.parameters()]
        self._descend(learner, loss, inputs=learning)
        return torch.stack([error, alignment]).detach()


class _Own(Narrowed):
    """The attacker's images behind the surrogate, in place of the encoder that it does not have."""

    surrogate: nn.Module

    def __init__(self, inner: Observer, own: Tensor) -> None:
        super().__init__(inner)
        self.whitening = inner.whitening  # of what arrives, which needs no image
        self.images = inner.images.subset(own)
        self._pixels = self.images.images.to(self.device)

    def release(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the surrogate would have sent."""
        with evaluating(self.surrogate):
            z: Tensor = self._model.channel(self.surrogate(x.to(self.device)), generator)
        return z


class _Surrogate(nn.Module):
    """Image -> feature: convolutions down to the feature's size, and its coordinates' means and spreads."""

    def __init__(self, observer: Observer, width: int, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shape = observer.feature_shape
        channels, *size = observer.image_shape
        is_map = len(self.shape) == 3
        target = self.shape[1:] if is_map else (4, 4)
        layers: list[nn.Module] = [*_layer(channels, width)]
        while min(size[0] // target[0], size[1] // target[1]) >= 2:
            layers += [nn.MaxPool2d(2), *_layer(width, width)]
            size = [side // 2 for side in size]
        layers.append(nn.AdaptiveAvgPool2d(target))
        if is_map:
            layers += [nn.Conv2d(width, self.shape[0], 3, padding=1), nn.Flatten()]
        else:
            layers += [nn.Flatten(), nn.Linear(16 * width, len(centre))]
        self.body = nn.Sequential(*layers)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, *feature_shape)."""
        return (self.body(x) * self.scale + self.centre).reshape(len(x), *self.shape)


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
