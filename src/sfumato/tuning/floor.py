"""The floor: how much usefulness has to be left, and how much of it is left on each held-out image."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sfumato.errors import ConfigError

__all__ = ["Floor", "floor_of"]


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
        lose, least = self.lose_at_most, self.accuracy_at_least
        if lose is not None and not (math.isfinite(lose) and 0 < lose < 100):
            raise ConfigError(f"lose_at_most is {lose:g}; give points of accuracy above 0 and below 100, such as 1")
        if least is not None and not (math.isfinite(least) and 0 < least < 1):
            raise ConfigError(f"accuracy_at_least is {least:g}; give a share above 0 and below 1, such as 0.97")

    @property
    def margin(self) -> float:
        """By how much one image's share of right answers may fall, on average, before the floor is broken."""
        return self.lose_at_most / 100 if self.lose_at_most is not None else 1.0

    def slack(self, right: Tensor, baseline: Tensor) -> Tensor:
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"lose_at_most": self.lose_at_most, "accuracy_at_least": self.accuracy_at_least}


def floor_of(lose_at_most: str | float | None, accuracy_at_least: str | float | None) -> Floor:
    """The floor from what a user typed; 1 point where nothing is given.

    Raises:
        ConfigError: something is no number, or has no meaning as a floor.
    """
    if lose_at_most is None and accuracy_at_least is None:
        lose_at_most = 1.0
    return Floor(_number("lose_at_most", lose_at_most, "1"), _number("accuracy_at_least", accuracy_at_least, "0.97"))


def _number(name: str, value: str | float | None, example: str) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}, which is no number; give one such as {example}") from None
