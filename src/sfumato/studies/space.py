"""What `tune` searches, and for what: defences, noise levels and weights of CEM, and the floor under the accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sfumato.errors import ConfigError
from sfumato.settings import check_settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, order=True)
class Setting:
    """One defence in one strength: noise on the wire (0: undefended) and weight of the CEM loss (0: without CEM).

    `defense` is a registered name; empty for that of the settings which all trainings share.
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
        named: dict[str, Any] = {"defense": self.defense} if self.defense else {}
        return named | {"noise_std": self.noise_std, "lam": self.lam}

    def describe(self) -> str:
        """In words."""
        if self.noise_std == 0:
            return "no defence"
        named = "" if self.defense in ("", "none") else f"{self.defense}, "
        weight = f", lambda {self.lam:g}" if self.lam else ", no CEM" if named else " alone"
        return f"{named}noise {self.noise_std:g}{weight}"


BASELINE = Setting(0.0)
"""No noise, no penalty: what the utility is compared with."""


@dataclass(frozen=True, order=True)
class Training:
    """One training: a setting, the fold that it does not learn from, and a number that tells repetitions apart."""

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
        least = {"baselines": 1, "folds": 2, "draws": 1, "confidence": 0.5}  # with two folds every image is held out
        check_settings(self, least=least, below={"draws": 10, "confidence": 1})
        object.__setattr__(self, "defenses", tuple(dict.fromkeys(self.defenses)))
        object.__setattr__(self, "noise_stds", _levels("noise_stds", self.noise_stds, "0.05 0.15 0.4"))
        object.__setattr__(self, "lams", _levels("lams", self.lams, "0.1 0.3 1"))

    @property
    def ladder(self) -> tuple[float, ...]:
        """Weights along which every noise level is searched: noise alone, then CEM from weak to strong."""
        return (0.0, *self.lams)

    @property
    def feet(self) -> tuple[Setting, ...]:
        """Where the ladders begin: every defence at every noise level, without CEM."""
        return tuple(Setting(noise, 0.0, name) for name in self.defenses or ("",) for noise in self.noise_stds)

    @property
    def baseline_trainings(self) -> tuple[Training, ...]:
        """The trainings of the undefended baseline."""
        return tuple(Training(BASELINE, f, r) for r in range(self.baselines) for f in range(self.folds))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The full grid, without the baseline."""
        return tuple(foot.at(lam) for foot in self.feet for lam in self.ladder)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        # Searches of one defence keep the identity that they had before there could be several.
        return {name: value for name, value in values.items() if name != "defenses" or value}


@dataclass(frozen=True)
class Floor:
    """What a setting may cost: one of the two, never both.

    Attributes:
        lose_at_most: points of accuracy (1 is one per cent of the images) against the undefended baseline.
        accuracy_at_least: share of the images that must be recognised, whatever the baseline does.

    Raises:
        ConfigError: none or both are given, or one has no meaning.
    """

    lose_at_most: float | None = None
    accuracy_at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.lose_at_most is None) == (self.accuracy_at_least is None):
            raise ConfigError("give one floor: --lose-at-most 1 (points) or --accuracy-at-least 0.97 (a share)")
        if (lose := self.lose_at_most) is not None and not 0 < lose < 100:
            raise ConfigError(f"lose_at_most is {lose:g}; give points of accuracy above 0 and below 100, such as 1")
        if (least := self.accuracy_at_least) is not None and not 0 < least < 1:
            raise ConfigError(f"accuracy_at_least is {least:g}; give a share above 0 and below 1, such as 0.97")

    @property
    def margin(self) -> float:
        """By how much one image's share of right answers may fall, on average, before the floor is broken."""
        return self.lose_at_most / 100 if self.lose_at_most is not None else 1.0

    def slack(self, right: "Tensor", baseline: "Tensor") -> "Tensor":
        """What is left above the floor on each image, (n,); a setting meets the floor where its mean is not negative.

            right - baseline + lose_at_most / 100      paired: hard images are hard for both and cancel
            right - accuracy_at_least

        Args:
            right: share of the noise draws with which each image was recognised, (n,).
            baseline: the same of the undefended baseline, on the same images.
        """
        if self.lose_at_most is not None:
            return right - baseline + self.lose_at_most / 100
        return right - float(self.accuracy_at_least or 0.0)

    def describe(self) -> str:
        """In words."""
        if self.lose_at_most is not None:
            return f"lose at most {self.lose_at_most:g} point{'' if self.lose_at_most == 1 else 's'} of accuracy"
        return f"accuracy of at least {100 * float(self.accuracy_at_least or 0.0):g} %"


def _levels(name: str, values: Sequence[float], example: str) -> tuple[float, ...]:
    if not values:
        raise ConfigError(f"{name} is empty; give values to search, such as {example}")
    if (wrong := next((value for value in values if not 0 < value < math.inf), None)) is not None:
        raise ConfigError(f"{name} holds {wrong:g}; give values above 0, such as {example}")
    return tuple(sorted(set(map(float, values))))
