"""Does a setting meet the floor? Means and standard errors of the slack, half by half, and a fit along lambda."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from sfumato.attacks import suite_verdict
from sfumato.studies.equal_accuracy import non_increasing
from sfumato.studies.space import BASELINE, Floor, Setting, Space, Training

# In standard errors of the selecting half, which has half of the images: what it lets pass is confirmed afterwards.
_FAILS = 1.0
_PASSES = 0.5

Half = Literal["selecting", "confirming", "both"]


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
        return suite_verdict({"attacks": self.attacks}).converged

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read a record, in which a digit per image says how many of the draws were recognised."""
        right = torch.tensor([int(digit) for digit in record["right"]], dtype=torch.float64) / record["draws"]
        half = torch.tensor([digit == "1" for digit in record["selecting"]])
        errors = record["error_selecting"], record["error_confirming"]
        return cls(right, half, errors, record["strongest"], record["attacks"], record["leakage"])

    def part(self, half: Half) -> Tensor:
        """The shares `right` of one half."""
        if half == "both":
            return self.right
        return self.right[self.selecting if half == "selecting" else ~self.selecting]

    def error(self, half: Half) -> float:
        """The strongest attacker's error on one half."""
        share = float(self.selecting.double().mean())
        first, second = {"selecting": (1.0, 0.0), "confirming": (0.0, 1.0), "both": (share, 1 - share)}[half]
        return first * self.errors[0] + second * self.errors[1]


class Estimate(NamedTuple):
    """A mean over the images of all folds with its standard error, see `Book.slack`, and how many images there are."""

    mean: float
    error: float
    images: int


class Book:
    """What has been measured, and what follows from it."""

    def __init__(
        self, measured: Mapping[Training, Measured], floor: Floor, space: Space, *, chance: float = 0.0
    ) -> None:
        self.measured, self.floor, self.space, self.chance = measured, floor, space, chance
        self.quantile = statistics.NormalDist().inv_cdf(space.confidence)

    def folds(self, setting: Setting) -> list[int]:
        """The folds in which both the setting and the baseline are measured."""
        return [f for f in range(self.space.folds) if self._of_fold(setting, f) and self._of_fold(BASELINE, f)]

    def settings(self) -> list[Setting]:
        """What is measured in at least one fold, without the baseline."""
        return [setting for setting in self.space.settings if self.folds(setting)]

    def complete(self, setting: Setting) -> bool:
        """Whether every fold is measured."""
        return len(self.folds(setting)) == self.space.folds

    def measurements(self, setting: Setting) -> list[Measured]:
        """All trainings of a setting, or of the baseline."""
        return [one for f in range(self.space.folds) for one in self._of_fold(setting, f)]

    def slack(self, setting: Setting, half: Half) -> Estimate:
        """What is left above the floor, on one half of the held-out images.

        The standard error is the larger of two: that of the mean over the n images, sd / sqrt(n) (for a floor against
        the baseline this is McNemar's: only images on which the two differ count), and that of the mean over the K
        folds, sd of their means / sqrt(K), which also holds the luck of every single training.
        """
        return _estimate([self.floor.slack(right, base) for right, base in self._pairs(setting, half)])

    def loss(self, setting: Setting, half: Half = "both") -> Estimate:
        """Accuracy lost against the baseline on the same images, as a share; negative where some was gained."""
        return _estimate([base - right for right, base in self._pairs(setting, half)])

    def accuracy(self, setting: Setting, half: Half = "both") -> float:
        """Share of the held-out images that are recognised."""
        return statistics.fmean(float(one.part(half).mean()) for one in self.measurements(setting))

    def error(self, setting: Setting, half: Half = "both") -> float:
        """The strongest attacker's error on held-out images, averaged over trainings."""
        return statistics.fmean(one.error(half) for one in self.measurements(setting))

    def leakage(self, setting: Setting, name: str) -> float | None:
        """`identified` or `information` on all held-out images, averaged over trainings; None where one has none."""
        found = [one.leakage.get(name) for one in self.measurements(setting)]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None

    def strongest(self, setting: Setting) -> str:
        """The attacks that were the strongest in one training or another."""
        return ", ".join(dict.fromkeys(one.strongest for one in self.measurements(setting) if one.strongest))

    def converged(self, setting: Setting) -> bool | None:
        """Whether all attacks on all trainings had come to rest; None where that cannot be judged."""
        found = [one.converged for one in self.measurements(setting)]
        return False if False in found else None if None in found else True

    def fails(self, setting: Setting) -> bool:
        """Whether the selecting half shows a broken floor, by more than a standard error; in any number of folds."""
        found = self.slack(setting, "selecting")
        return found.mean + _FAILS * found.error < 0

    def passes(self, setting: Setting) -> bool:
        """Whether the selecting half shows the floor met in all folds, by more than half a standard error.

        The mean is that of a monotone fit: accuracy cannot rise with lambda, so a strong setting that does better than
        a weaker one was lucky, and both are taken for their average. Noise alone is left out of the fit: a little CEM
        may help accuracy.
        """
        if not self.complete(setting):
            return False
        mean, error, _ = self.slack(setting, "selecting")
        if setting.lam > 0:
            line = [one for lam in self.space.lams if self.folds(one := setting.at(lam))]
            means = [self.slack(one, "selecting").mean for one in line]
            mean = non_increasing(means, [len(self.folds(one)) for one in line])[line.index(setting)]
        return mean - _PASSES * error >= 0

    def confirmed(self, setting: Setting) -> bool:
        """Whether the half that selected nothing shows the floor met, and both halves with the required confidence."""
        both = self.slack(setting, "both")
        return self.slack(setting, "confirming").mean >= 0 and both.mean - self.quantile * both.error >= 0

    def _pairs(self, setting: Setting, half: Half) -> list[tuple[Tensor, Tensor]]:
        """Right answers of the setting and of the baseline on each fold's images, averaged over trainings."""

        def right(of: Setting, fold: int) -> Tensor:
            return torch.stack([one.part(half) for one in self._of_fold(of, fold)]).mean(0)

        return [(right(setting, fold), right(BASELINE, fold)) for fold in self.folds(setting)]

    def _of_fold(self, setting: Setting, fold: int) -> list[Measured]:
        repeats = self.space.baselines if setting == BASELINE else 1
        trainings = (Training(setting, fold, repeat) for repeat in range(repeats))
        return [self.measured[one] for one in trainings if one in self.measured]


def _estimate(folds: Sequence[Tensor]) -> Estimate:
    every = torch.cat(list(folds))
    count = len(every)
    error = float(every.std()) / math.sqrt(count) if count > 1 else math.inf
    if len(folds) > 1:
        error = max(error, statistics.stdev(float(part.mean()) for part in folds) / math.sqrt(len(folds)))
    return Estimate(float(every.mean()), error, count)
