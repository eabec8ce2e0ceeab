"""The decoding attacks: a network trained to reconstruct the image from what leaves the device."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Observer, hold_out
from sfumato.attacks.learned import AdamConfig, LearnedAttack, Learner, Random, Turn
from sfumato.attacks.linear import best_linear

__all__ = ["DecoderAttack", "DecoderConfig", "StrongAttack", "StrongConfig", "view"]

Views = Literal["none", "flip", "flip+shift"]
VIEWS: tuple[Views, ...] = get_args(Views)

_SHIFT = 8  # an image is shifted by at most this part of its side
_TOLERANCE = 1.02  # by how much more views may worsen the linear attack and still be taken
_CHOOSERS = 2048  # images on which the views are compared


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(AdamConfig):
    """Settings of the decoding attack; the defaults are those of the authors' code.

    (The paper's text says a learning rate of 0.005, its code 0.001.)

    >>> DecoderConfig().lr
    0.001
    """


class DecoderAttack(LearnedAttack[DecoderConfig]):
    """Minimises the MSE of `net(encode(x))` against x over the attacker's images.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train.subset(torch.arange(200))
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> attack = DecoderAttack(DecoderConfig(epochs=1, width=4, blocks=0)).fit(Observer(model, digits))
    >>> print(f"{attack.outcome.held_out_mse:.3f}", attack.outcome.converged)
    0.005 False
    """

    name: ClassVar[str] = "decoder"
    settings: ClassVar[type[Any]] = DecoderConfig


@dataclass(frozen=True, kw_only=True)
class StrongConfig(AdamConfig):
    """Settings of the strong decoding attack.

    Attributes:
        average: Decay per step of the moving average of the weights. That average is what reconstructs.
        views: What else the attacker has encoded. `none`, `flip`, `flip+shift`, or `auto`: the most that does
            not worsen the linear attack on held-out images.

    >>> StrongConfig().epochs
    150
    """

    epochs: int = 150
    batch_size: int = 64
    average: float = 0.98
    views: Literal["auto", "none", "flip", "flip+shift"] = "auto"


class StrongAttack(LearnedAttack[StrongConfig]):
    """The decoding attack's network over fresh views and fresh noise, for longer.

    Where the decoding attack has its 50 epochs and the attacker's images as they are, this one has

    - mirrored and shifted images, which an attacker can have encoded as well as any other: after 50 epochs over 900
      images the decoding attack knows those far better than unseen ones;
    - the moving average of the weights as its answer, in the epoch with the smallest error on held-out images;
    - three times the epochs, over which views are never exhausted.

    `net` is the average; `student` is what the optimizer moves.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train.subset(torch.arange(200))
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> attack = StrongAttack(StrongConfig(epochs=1, width=4, blocks=0)).fit(Observer(model, digits))
    >>> attack.views  # a mirrored digit is none
    'none'
    """

    name: ClassVar[str] = "strong"
    settings: ClassVar[type[Any]] = StrongConfig
    views: Views = "none"

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        judge, learn = hold_out(len(observer), self.config.hold_out, self.config.seed)
        self.views = self._choose_views(observer, learn, judge)
        student = self._inverter(observer)
        average = copy.deepcopy(student).requires_grad_(False)
        average.arranged, average.sketch = student.arranged, student.sketch  # they are the same, and may be large
        return {"net": average, "student": student}

    def _choose_views(self, observer: Observer, learn: Tensor, judge: Tensor) -> Views:
        """The most views that do not worsen the linear attack: such data allow them."""
        if not observer.encodes:
            return "none"
        if self.config.views != "auto":
            return self.config.views
        errors: dict[Views, float] = {}
        for views in VIEWS:

            def pairs(some: Tensor, noise: torch.Generator, views: Views = views) -> tuple[Tensor, Tensor]:
                return self._view(observer, some, views, noise, noise)

            found = best_linear(observer, learn[:_CHOOSERS], judge, draws=1, seed=self.config.seed, pairs=pairs)
            errors[views] = found.error
        return [views for views in VIEWS if errors[views] <= _TOLERANCE * errors["none"]][-1]

    def _batch(self, observer: Observer, indices: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        return self._view(observer, indices, self.views, random("views"), random("noise"))

    def _view(
        self, observer: Observer, indices: Tensor, views: Views, moves: torch.Generator, noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if views == "none":
            return observer.pairs(indices, noise)
        x = view(observer.pixels(indices), views, moves)
        return x, observer.encode(x, noise)

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        means = super()._step(learner, turn)
        # The average of few steps is short, or the random weights of the beginning would stay in it.
        decay = min(self.config.average, (1 + turn.number) / (10 + turn.number))
        _follow(learner.net, learner.networks["student"], decay)
        return means


def view(x: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) -> (n, C, H, W), mirrored with probability 1/2 and shifted by up to an eighth of their side.

    What a shift uncovers is filled with the image's mirror image, so that no black border teaches the attack anything.

    >>> x = torch.tensor([[[[0.0, 1.0]]]]).expand(1000, 1, 1, 2)
    >>> print(f"{view(x, 'flip', torch.Generator().manual_seed(0))[:, 0, 0, 0].mean():.1f}")
    0.5
    """
    if views == "none":
        return x
    n, device = len(x), x.device
    mirrored = torch.randint(2, (n,), generator=generator, device=generator.device).to(device).bool()
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    height, width = x.shape[2:]
    most = min(height, width) // _SHIFT
    if views == "flip" or most == 0:
        return x
    down, right = torch.randint(2 * most + 1, (2, n), generator=generator, device=generator.device).tolist()
    padded = F.pad(x, (most, most, most, most), mode="reflect")
    return torch.stack([one[:, i : i + height, j : j + width] for one, i, j in zip(padded, down, right, strict=True)])


@torch.no_grad()
def _follow(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the average's weights and buffers towards the student's."""
    theirs = student.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(theirs[name], 1.0 - decay)
        else:
            value.copy_(theirs[name])
