"""The strong decoding attack: the decoding attack over images of the attacker's making, and for longer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sfumato.attacks.base import Observer, hold_out
from sfumato.attacks.learned import LearnedAttack
from sfumato.attacks.learner import Learner
from sfumato.attacks.linear import best_linear
from sfumato.attacks.settings import check_attack
from sfumato.attacks.steps import Turn
from sfumato.attacks.views import VIEWS, Views, view
from sfumato.compute import Precision, autocast
from sfumato.metrics import ssim
from sfumato.models import ReconstructionNet

__all__ = ["StrongAttack", "StrongConfig"]

_TOLERANCE = 1.02  # by how much more views may worsen the linear attack and still be taken
_CHOOSERS = 2048  # images on which the views are compared
_STATISTICS = 2048  # images for the error of the mean image


@dataclass(frozen=True)
class StrongConfig:
    """Settings of the strong decoding attack.

    Attributes:
        epochs: Passes over the attacker's images.
        batch_size: Images per step.
        lr: Learning rate of Adam. Annealed to 0 along a cosine.
        weight_decay: Weight decay of Adam.
        average: Decay per step of the moving average of the weights. That average is what reconstructs.
        loss: What is minimised. `mse`, `ssim` (1 - SSIM), or `mse+ssim` (MSE over the mean image's MSE, plus 1
            - SSIM).
        views: What else the attacker has encoded. `none`, `flip`, `flip+shift`, or `auto`: the most that does
            not worsen the linear attack on held-out images.
        width: Channels of every layer.
        blocks: Residual blocks before upsampling.
        hold_out: Fraction of the attacker's images that only judge. They choose the epoch and show convergence.
        precision: Floating-point format of the networks. `auto` and `fp32` compute in float32 on every machine; `bf16`
            does not.
        seed: Random seed of initial weights, order, views and noise.
    """

    epochs: int = 150
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-4
    average: float = 0.98
    loss: Literal["mse", "ssim", "mse+ssim"] = "mse"
    views: Literal["auto", "none", "flip", "flip+shift"] = "auto"
    width: int = 64
    blocks: int = 8
    hold_out: float = 0.1
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_attack(self)


class StrongAttack(LearnedAttack[StrongConfig]):
    """The decoding attack's network over fresh views and fresh noise, for longer.

    Where the decoding attack has its 50 epochs and the attacker's images as they are, this one has

    - mirrored and shifted images, which an attacker can have encoded as well as any other: after 50 epochs over 900
      images the decoding attack knows those far better than unseen ones;
    - the moving average of the weights as its answer, in the epoch with the smallest error on held-out images;
    - three times the epochs, over which views are never exhausted.

    `net` is the average; `student` is what the optimizer moves.
    """

    name: ClassVar[str] = "strong"

    def __init__(self, config: StrongConfig | None = None) -> None:
        super().__init__(config or StrongConfig())
        self.views: Views = "none"
        self._variance = 1.0

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        cfg = self.config
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        self.views = self._choose_views(observer, learn, judge)
        x = observer.pixels(learn[:_STATISTICS])
        self._variance = float((x - x.mean(0)).square().mean().clamp_min(1e-8))
        shapes = observer.feature_shape, observer.image_shape
        student = ReconstructionNet(*shapes, width=cfg.width, blocks=cfg.blocks)
        average = ReconstructionNet(*shapes, width=cfg.width, blocks=cfg.blocks)
        average.load_state_dict(student.state_dict())
        return {"net": average.requires_grad_(False), "student": student}

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
            errors[views] = found[1]
        return [views for views in VIEWS if errors[views] <= _TOLERANCE * errors["none"]][-1]

    def _optimizers(self, networks: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        cfg = self.config
        adam = torch.optim.Adam(networks["student"].parameters(), cfg.lr, weight_decay=cfg.weight_decay, fused=True)
        return {"optimizer": adam}

    def _batch(
        self, observer: Observer, indices: Tensor, random: Callable[[str], torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        return self._view(observer, indices, self.views, random("views"), random("noise"))

    def _view(
        self, observer: Observer, indices: Tensor, views: Views, moves: torch.Generator, noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if views == "none":
            return observer.pairs(indices, noise)
        x = view(observer.pixels(indices), views, moves)
        return x, observer.encode(x, noise)

    def _form(self, number: int) -> str | None:
        return "step" if self._decay(number) == self.config.average else None  # at first the decay still grows

    def _decay(self, number: int) -> float:
        return min(self.config.average, (1 + number) / (10 + number))

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        student = learner.networks["student"]
        with autocast(turn.x.device, turn.bf16):
            x_hat = student(turn.z)
        error = (x_hat.float() - turn.x).square().mean()
        optimizer = learner.optimizers["optimizer"]
        optimizer.zero_grad(set_to_none=True)
        self._loss(turn.x, x_hat.float(), error).backward()
        optimizer.step()
        _follow(learner.net, student, self._decay(turn.number))
        return error.detach()[None]

    def _loss(self, x: Tensor, x_hat: Tensor, error: Tensor) -> Tensor:
        if self.config.loss == "mse":
            return error
        unlike = 1.0 - ssim(x, x_hat).mean()
        return unlike if self.config.loss == "ssim" else error / self._variance + unlike


@torch.no_grad()
def _follow(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the average's weights and buffers towards the student's."""
    theirs = student.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(theirs[name], 1.0 - decay)
        else:
            value.copy_(theirs[name])
