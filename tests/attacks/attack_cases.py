"""A toy victim, its images, and a small configuration of every attack."""

from dataclasses import fields
from typing import Any

import torch

from sfumato import attacks
from sfumato.attacks import AttackConfig, LearnedAttack, Observer, build
from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel

# Every attack of the registry takes what it has of these, so that a new one is in all suites by itself.
SMALL: dict[str, Any] = {
    "epochs": 4, "batch_size": 32, "width": 8, "blocks": 1, "lr": 5e-3, "views": "none",
    "generator_lr": 5e-3, "critic_steps": 2,
    "images": 40, "iterations": 10, "choose_on": 2, "samples": 2, "flow_steps": 2,
}  # fmt: skip


def small(name: str) -> Any:
    config = attacks.ATTACKS[name].config
    return config(**{field.name: SMALL[field.name] for field in fields(config) if field.name in SMALL})


ATTACKS: dict[str, AttackConfig] = {name: small(name) for name in attacks.ATTACKS}
# Attacks that train a network in epochs of one length; they pass a suite of their own.
LEARNED: dict[str, Any] = {name: ATTACKS[name] for name in ("decoder", "gan", "strong")}


class Recorder(torch.nn.Module):
    """A linear encoder of 2x2 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layer(x))


def victim(noise_std: float = 0.05, **options: object) -> SplitModel:
    torch.manual_seed(0)
    channel = Channel(noise_std=noise_std, **options)  # type: ignore[arg-type]
    return SplitModel(Recorder(), channel, torch.nn.Flatten()).eval()


def images(count: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return ImageSet((smooth * 255).to(torch.uint8), torch.zeros(count, dtype=torch.int64), ("only",))


def observer(noise_std: float = 0.05, count: int = 200) -> Observer:
    return Observer(victim(noise_std), images(count))


def weights(attack: LearnedAttack) -> dict[str, torch.Tensor]:
    assert attack.net is not None
    return attack.net.state_dict()


def fitted(config: AttackConfig, noise_std: float = 0.05, **options: Any) -> tuple[Any, SplitModel]:
    model = victim(noise_std)
    return build(config).fit(Observer(model, images(200)), **options), model
