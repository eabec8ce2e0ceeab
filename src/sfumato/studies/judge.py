"""Does a setting meet the floor? Means and standard errors of the slack, half by half, and a fit along lambda."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from sfumato.studies.equal_accuracy import non_increasing
from sfumato.studies.space import BASELINE, Floor, Setting, Space, Training
from sfumato.studies.tune_trials import Measured

# In standard errors of the selecting half, which has half of the images: what it lets pass is confirmed afterwards.
_FAILS = 1.0
_PASSES = 0.5

Half = Literal["selecting", "confirming", "both"]


@dataclass(frozen=True)
class Estimate:
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
        self._known: dict[tuple[Setting, str], Estimate] = {}
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
        if (setting, half) not in self._known:
            pairs = self._pairs(setting, half)
            self._known[setting, half] = _estimate([self.floor.slack(*pair) for pair in pairs])
        return self._known[setting, half]

    def loss(self, setting: Setting, half: Half = "both") -> Estimate:
        """Accuracy lost against the baseline on the same images, as a share; negative where some was gained."""
        return _estimate([baseline - right for right, baseline in self._pairs(setting, half)])

    def accuracy(self, setting: Setting, half: Half = "both") -> float:
        """Share of the held-out images that are recognised."""
        return statistics.fmean(float(_part(one, half).mean()) for one in self.measurements(setting))

    def error(self, setting: Setting, half: Half = "both") -> float:
        """The strongest attacker's error on held-out images, averaged over trainings."""
        found = []
        for one in self.measurements(setting):
            share = float(one.selecting.double().mean())
            weights = {"selecting": (1.0, 0.0), "confirming": (0.0, 1.0), "both": (share, 1 - share)}[half]
            found.append(sum(weight * error for weight, error in zip(weights, one.errors, strict=True)))
        return statistics.fmean(found)

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
        return self._fitted(setting) - _PASSES * self.slack(setting, "selecting").error >= 0

    def confirmed(self, setting: Setting) -> bool:
        """Whether the half that selected nothing shows the floor met, and both halves with the required confidence."""
        both = self.slack(setting, "both")
        return self.slack(setting, "confirming").mean >= 0 and both.mean - self.quantile * both.error >= 0

    def _fitted(self, setting: Setting) -> float:
        line = [one for lam in self.space.lams if self.folds(one := setting.at(lam)) and setting.lam > 0]
        if setting not in line:
            return self.slack(setting, "selecting").mean
        means = [self.slack(one, "selecting").mean for one in line]
        return non_increasing(means, [len(self.folds(one)) for one in line])[line.index(setting)]

    def _pairs(self, setting: Setting, half: Half) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Right answers of the setting and of the baseline on each fold's images, averaged over trainings."""
        return [(self._right(setting, f, half), self._right(BASELINE, f, half)) for f in self.folds(setting)]

    def _right(self, setting: Setting, fold: int, half: Half) -> torch.Tensor:
        return torch.stack([_part(one, half) for one in self._of_fold(setting, fold)]).mean(0)

    def _of_fold(self, setting: Setting, fold: int) -> list[Measured]:
        repeats = self.space.baselines if setting == BASELINE else 1
        trainings = (Training(setting, fold, repeat) for repeat in range(repeats))
        return [self.measured[one] for one in trainings if one in self.measured]


def _part(one: Measured, half: Half) -> torch.Tensor:
    if half == "both":
        return one.right
    return one.right[one.selecting if half == "selecting" else ~one.selecting]


def _estimate(folds: Sequence[torch.Tensor]) -> Estimate:
    every = torch.cat(list(folds))
    count = len(every)
    error = float(every.std()) / math.sqrt(count) if count > 1 else math.inf
    if len(folds) > 1:
        error = max(error, statistics.stdev(float(part.mean()) for part in folds) / math.sqrt(len(folds)))
    return Estimate(float(every.mean()), error, count)
