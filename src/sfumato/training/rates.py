"""Learning rates as pure functions of the progress, so that resuming needs no state."""

import math

from sfumato.errors import ConfigError

__all__ = ["learning_rate"]

_WARM_UP = 0.25
_START, _END = 0.04, 0.002
_PAPER_DROPS = (60 / 240, 120 / 240, 180 / 240, 210 / 240)


def learning_rate(name: str, peak: float, progress: float) -> float:
    """The learning rate at `progress` in [0, 1).

    - `one_cycle`: linear from 4 % to the peak over the first quarter, then along a cosine down to 0.2 %.
    - `paper`: the peak, times 0.2 at epochs 60, 120, 180 and 210 of 240 (30, 60, 90, 105 of 120).
    """
    if name == "one_cycle":
        if progress < _WARM_UP:
            return peak * (_START + (1 - _START) * progress / _WARM_UP)
        falling = (progress - _WARM_UP) / (1 - _WARM_UP)
        return peak * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * min(1.0, falling))))
    if name == "paper":
        return float(peak * 0.2 ** sum(progress >= drop for drop in _PAPER_DROPS))
    raise ConfigError(f"unknown learning rate schedule {name!r}; choose one_cycle or paper")
