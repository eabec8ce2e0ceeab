"""What is searched: defences, noise levels, weights of CEM, and how often each of them is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sfumato.errors import ConfigError
from sfumato.settings import check_settings

__all__ = ["BASELINE", "Setting", "Space", "Trial"]


@dataclass(frozen=True, order=True)
class Setting:
    """One defence in one strength.

    Attributes:
        noise_std: of the noise on the wire; 0 is the undefended baseline.
        lam: weight of the CEM loss; 0 is the defence without CEM.
        defense: registered name; empty for that of the settings which all trainings share.
    """

    noise_std: float
    lam: float = 0.0
    defense: str = ""

    def at(self, lam: float) -> "Setting":
        """The same defence and noise with another weight of the CEM loss."""
        return replace(self, lam=lam)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Setting":
        """From what `as_dict` gave, and whatever else lies beside it."""
        return cls(values["noise_std"], values["lam"], values.get("defense", ""))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; with a defence only where the search chooses among several."""
        own: dict[str, Any] = {"defense": self.defense} if self.defense else {}
        return own | {"noise_std": self.noise_std, "lam": self.lam}

    def describe(self) -> str:
        """In words."""
        if self.noise_std == 0:
            return "no defence"
        noise = f"noise {self.noise_std:g}"
        if self.defense in ("", "none"):
            return noise + (f", lambda {self.lam:g}" if self.lam else " alone")
        return f"{self.defense}, {noise}" + (f", lambda {self.lam:g}" if self.lam else ", no CEM")


BASELINE = Setting(0.0)
"""No noise, no penalty: what the utility is compared with."""


@dataclass(frozen=True, order=True)
class Trial:
    """One training.

    Attributes:
        setting: its strength.
        fold: of the images that it does not learn from.
        repeat: tells trainings of one setting and fold apart, by their seeds.
    """

    setting: Setting
    fold: int
    repeat: int = 0


@dataclass(frozen=True)
class Space:
    """The grid that the search walks on, and how it judges.

    Attributes:
        noise_stds: Standard deviations of the noise to try. In units of the feature, which a sigmoid bounds to
            (0, 1).
        lams: Weights of the CEM loss to try. Noise alone (0) is always among what is tried.
        folds: Parts into which the training images are dealt. Each setting is trained once without each of
            them.
        baselines: Trainings of the undefended baseline per fold. They are averaged: their luck would be in
            every comparison.
        draws: Noise draws with which a held-out image is classified, 1 to 9.
        confidence: One-sided confidence with which the floor has to be met. Both halves of the held-out images
            together show it.
        attack: What attacks every training. `ridge` are the attacks in closed form, ridge and nearest;
            `decoder` adds a short training. The error of the strongest is made as large as possible.
        seed: Random seed of folds, halves, trainings and noise.
        defenses: Registered defences to choose among, each with its usual settings. If none is given, that of
            the settings.

    Raises:
        ConfigError: a value has no meaning.
    """

    noise_stds: tuple[float, ...] = (0.05, 0.15, 0.4)
    lams: tuple[float, ...] = (0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    folds: int = 3
    baselines: int = 2
    draws: int = 5
    confidence: float = 0.93
    attack: Literal["ridge", "decoder"] = "ridge"
    seed: int = 0
    defenses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self, least={"baselines": 1})
        object.__setattr__(self, "defenses", tuple(dict.fromkeys(self.defenses)))
        object.__setattr__(self, "noise_stds", _levels("noise_stds", self.noise_stds, "0.05 0.15 0.4"))
        object.__setattr__(self, "lams", _levels("lams", self.lams, "0.1 0.3 1"))
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds}; give at least 2, so that every image is once held out")
        if not 1 <= self.draws <= 9:
            raise ConfigError(f"draws is {self.draws}; give 1 to 9 noise draws per held-out image")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"confidence is {self.confidence:g}; give a share from 0.5 to below 1, such as 0.93")

    @property
    def ladder(self) -> tuple[float, ...]:
        """Weights along which every noise level is searched: noise alone, then CEM from weak to strong."""
        return (0.0, *self.lams)

    @property
    def feet(self) -> tuple[Setting, ...]:
        """Where the ladders begin: every defence at every noise level, without CEM."""
        return tuple(Setting(noise, 0.0, name) for name in self.defenses or ("",) for noise in self.noise_stds)

    @property
    def baseline_trials(self) -> tuple[Trial, ...]:
        """The trainings of the undefended baseline."""
        return tuple(Trial(BASELINE, f, r) for r in range(self.baselines) for f in range(self.folds))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The full grid, without the baseline."""
        return tuple(foot.at(lam) for foot in self.feet for lam in self.ladder)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if not self.defenses:  # searches of one defence keep the identity that they had before there could be several
            del values["defenses"]
        return values


def _levels(name: str, values: Sequence[float], example: str) -> tuple[float, ...]:
    if not values:
        raise ConfigError(f"{name} is empty; give values to search, such as {example}")
    if not all(math.isfinite(value) and value > 0 for value in values):
        wrong = next(value for value in values if not (math.isfinite(value) and value > 0))
        raise ConfigError(f"{name} holds {wrong:g}; give values above 0, such as {example}")
    return tuple(sorted(set(map(float, values))))
