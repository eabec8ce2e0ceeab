"""The decoding attack: a network trained to reconstruct the image from what leaves the device."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.attacks.base import Observer
from sfumato.attacks.learned import LearnedAttack
from sfumato.attacks.learner import Learner
from sfumato.attacks.settings import check_attack
from sfumato.attacks.steps import Turn
from sfumato.compute import Precision, autocast
from sfumato.models import ReconstructionNet

__all__ = ["DecoderAttack", "DecoderConfig"]


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of the decoding attack; the defaults are those of the authors' code.

    Attributes:
        epochs: Passes over the attacker's images.
        batch_size: Images per step.
        lr: Learning rate of Adam. Annealed to 0 along a cosine. (The paper's text says 0.005, its code 0.001.)
        weight_decay: Weight decay of Adam.
        width: Channels of every layer.
        blocks: Residual blocks before upsampling.
        hold_out: Fraction of the attacker's images that only judge. They choose the epoch and show convergence.
        precision: Floating-point format of the networks. `auto` and `fp32` compute in float32 on every machine; `bf16`
            does not.
        seed: Random seed of initial weights, order and noise.
    """

    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    width: int = 64
    blocks: int = 8
    hold_out: float = 0.1
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_attack(self)


class DecoderAttack(LearnedAttack[DecoderConfig]):
    """Minimises the MSE of `net(encode(x))` against x over the attacker's images."""

    name: ClassVar[str] = "decoder"

    def __init__(self, config: DecoderConfig | None = None) -> None:
        super().__init__(config or DecoderConfig())

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        cfg = self.config
        shapes = observer.feature_shape, observer.image_shape
        return {"net": ReconstructionNet(*shapes, width=cfg.width, blocks=cfg.blocks)}

    def _optimizers(self, networks: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        cfg = self.config
        adam = torch.optim.Adam(networks["net"].parameters(), cfg.lr, weight_decay=cfg.weight_decay, fused=True)
        return {"optimizer": adam}

    def _form(self, number: int) -> str:
        return "step"

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        with autocast(turn.x.device, turn.bf16):
            x_hat = learner.net(turn.z)
        loss = (x_hat.float() - turn.x).square().mean()
        optimizer = learner.optimizers["optimizer"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()[None]
