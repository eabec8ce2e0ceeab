"""The decoding attack: a network trained to reconstruct the image from what leaves the device."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sfumato.attacks.base import Observer
from sfumato.attacks.learned import LearnedAttack
from sfumato.attacks.settings import AdamConfig

__all__ = ["DecoderAttack", "DecoderConfig"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(AdamConfig):
    """Settings of the decoding attack; the defaults are those of the authors' code.

    (The paper's text says a learning rate of 0.005, its code 0.001.)
    """


class DecoderAttack(LearnedAttack[DecoderConfig]):
    """Minimises the MSE of `net(encode(x))` against x over the attacker's images."""

    name: ClassVar[str] = "decoder"
    settings: ClassVar[type[Any]] = DecoderConfig

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        return {"net": self._inverter(observer)}
