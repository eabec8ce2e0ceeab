"""What one training shows: which held-out images are recognised through the wire, how well they are reconstructed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from sfumato import attacks, data
from sfumato.attacks import Attack, AttackConfig, DecoderConfig, Observer, RidgeConfig, invert, measure_leakage
from sfumato.data import ImageSet
from sfumato.errors import DataError
from sfumato.seeds import derive_seed, generator
from sfumato.split import SplitModel
from sfumato.training.evaluate import recognised

_ATTACKS: dict[str, Callable[[int], AttackConfig]] = {
    "ridge": lambda seed: RidgeConfig(seed=seed),
    "decoder": lambda seed: DecoderConfig(epochs=15, batch_size=128, lr=3e-3, width=32, blocks=2, seed=seed),
}


@dataclass(frozen=True)
class Measured:
    """One training's figures on the images that it did not learn from.

    Attributes:
        right: share of the noise draws with which each image was recognised, (n,).
        selecting: which of the images belong to the half that selects, (n,) bool; the others confirm.
        errors: the strongest attacker's mean squared error on the half that selects and on the one that confirms.
        strongest: the attack with the smallest error on both halves together.
        attacks: figures of every attack, from which its convergence is judged whenever it is shown.
        leakage: as `measure_leakage` gives it, on all held-out images; empty where nothing was attacked.
    """

    right: Tensor
    selecting: Tensor
    errors: tuple[float, float]
    strongest: str = ""
    attacks: Mapping[str, Any] = field(default_factory=dict)
    leakage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converged(self) -> bool | None:
        """Whether every attack had come to rest, by today's rule; None where nothing was stored to judge by."""
        return attacks.suite_verdict({"attacks": self.attacks}).converged

    def as_dict(self, draws: int) -> dict[str, Any]:
        """Plain values, for JSON: one digit per image says how many of the draws were recognised."""
        counts = (self.right * draws).round().long().tolist()
        return {
            "draws": draws,
            "right": "".join(map(str, counts)),
            "selecting": "".join("01"[value] for value in self.selecting.tolist()),
            "error_selecting": self.errors[0],
            "error_confirming": self.errors[1],
            "strongest": self.strongest,
            "attacks": dict(self.attacks),
            "leakage": dict(self.leakage),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `as_dict` gave."""
        right = torch.tensor([int(digit) for digit in values["right"]], dtype=torch.float64) / values["draws"]
        half = torch.tensor([digit == "1" for digit in values["selecting"]])
        errors = values["error_selecting"], values["error_confirming"]
        return cls(right, half, errors, values["strongest"], values["attacks"], values["leakage"])


def parts(images: ImageSet, folds: int, fold: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to learn from and those held out, in fold `fold`; stratified by class."""
    learn, held = data.folds(images, folds, seed)[fold]
    if len(learn.labels.unique()) < len(images.labels.unique()):
        raise DataError(
            f"{len(images)} images are too few for {folds} folds of {images.num_classes} classes: a class would have "
            "none to learn from; use more images or fewer folds"
        )
    return learn, held


def selecting(labels: Tensor, seed: int) -> Tensor:
    """Which held-out images select, (n,) bool: half of them, and of each class half, up to one image."""
    order = torch.randperm(len(labels), generator=generator(seed, "halves"))
    order = order[labels[order].argsort(stable=True)]
    half = torch.zeros(len(labels), dtype=torch.bool)
    half[order[::2]] = True
    return half


def fitted(model: SplitModel, learn: ImageSet, *, attack: str, seed: int) -> dict[str, Attack]:
    """The attackers of a trained model: those in closed form, and a briefly trained one where `attack` is `decoder`.

    They learn from the images that the model learned from.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    observer = Observer(model, learn, device=device)
    configs = attacks.with_closed_forms(_ATTACKS[attack](seed), seed=seed)
    return {attacks.name_of(config): attacks.build(config).fit(observer) for config in configs}


def measured(
    model: SplitModel,
    attackers: Mapping[str, Attack],
    held: ImageSet,
    *,
    draws: int,
    seed: int,
    halves: int,
    bf16: bool = False,
) -> Measured:
    """Measure a trained model."""
    right = recognised(model, held, seed=derive_seed(seed, "tune"), draws=draws, bf16=bf16).double() / draws
    half = selecting(held.labels, halves)
    found = {name: invert(attacker, model, held, seed=seed) for name, attacker in attackers.items()}
    best = attacks.strongest({name: one.means()["mse"] for name, one in found.items()})
    each = found[best].mse.double()
    figures = {}
    for name, attacker in attackers.items():
        assert attacker.outcome is not None
        figures[name] = attacks.figures_of(asdict(attacker.outcome), attacker.history, test=found[name].means())
    leakage = measure_leakage(model, held, seed=seed).as_dict()
    return Measured(right, half, (float(each[half].mean()), float(each[~half].mean())), best, figures, leakage)


def nothing(held: ImageSet, *, halves: int) -> Measured:
    """What a training shows whose loss became NaN: a model that recognises nothing, and no attack."""
    return Measured(torch.zeros(len(held), dtype=torch.float64), selecting(held.labels, halves), (0.0, 0.0))
