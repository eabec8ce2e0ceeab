"""How the weight of the CEM loss moves during training. The schedule is part of the method and has a name.

The bound of Theorem 2 is scale-free: however small the features become, its gradient keeps pulling them together. A
constant weight from the first step would win against a classifier that has not learned anything yet. The competence
factor of the loss prevents that, so that the default is `constant`; the others are what the authors' code does, and a
late start for losses without that factor.
"""

from collections.abc import Callable

from sfumato.errors import ConfigError

__all__ = ["SCHEDULES", "Schedule", "constant", "lr_coupled", "ramp", "schedule"]

Schedule = Callable[[float, float], float]
"""`(progress, lr) -> factor`: progress in [0, 1] through the training, lr the current learning rate."""

RAMP_FRACTION = 0.6
REFERENCE_LR = 1e-3


def constant(progress: float, lr: float) -> float:
    """Factor 1 throughout: the paper's text (Eq. 8), and the default."""
    return 1.0


def lr_coupled(progress: float, lr: float) -> float:
    """Factor `min(1, 0.001 / lr)`: what the authors' code does.

    The step that the encoder takes for the CEM loss, lr times the factor, then stays constant until the learning
    rate has fallen below 0.001: lambda acts like a second learning rate.
    """
    return 1.0 if lr <= REFERENCE_LR else REFERENCE_LR / lr


def ramp(progress: float, lr: float) -> float:
    """Linear from 0 to 1 over the first 60 % of the training, then 1."""
    return min(1.0, max(0.0, progress) / RAMP_FRACTION)


SCHEDULES: dict[str, Schedule] = {"constant": constant, "lr_coupled": lr_coupled, "ramp": ramp}


def schedule(name: str) -> Schedule:
    """Look a schedule up by name.

    Raises:
        ConfigError: the name is unknown; the text lists the known ones.
    """
    try:
        return SCHEDULES[name]
    except KeyError:
        known = ", ".join(SCHEDULES)
        raise ConfigError(f"unknown schedule of lambda {name!r}; choose one of {known}") from None
