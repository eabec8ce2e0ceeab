"""The settings that all attacks have, and those of every attack with a network to train."""

from typing import Any, ClassVar, Protocol

from sfumato.compute import Precision
from sfumato.settings import check_settings

__all__ = ["AttackConfig", "LearnedConfig", "check_attack"]

_SIZES = (
    "epochs",
    "batch_size",
    "width",
    "critic_steps",
    "draws",
    "size",
    "values",
    "images",
    "iterations",
    "restarts",
)
_WEIGHTS = ("blocks", "mse_weight", "gradient_penalty", "tv", "prior", "average", "weight_decay")
_LEAST = dict.fromkeys((*_SIZES, "choose_on", "code"), 1) | dict.fromkeys(_WEIGHTS, 0)
_ABOVE = dict.fromkeys(("lr", "generator_lr", "critic_lr", "noise", "step", "hold_out"), 0)
_BELOW = {"hold_out": 1, "average": 1}


class AttackConfig(Protocol):
    """Settings that every attack has."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def hold_out(self) -> float: ...
    @property
    def seed(self) -> int: ...


class LearnedConfig(AttackConfig, Protocol):
    """Settings that every learned attack has; the leaf's dataclass says what they mean and their defaults."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def precision(self) -> Precision: ...


def check_attack(config: AttackConfig) -> None:
    """Check all settings of an attack: of the annotated type, finite, and in the range that their names have.

    Raises:
        ConfigError: one of them is not.
    """

    def own(table: dict[str, int]) -> dict[str, int]:
        return {name: limit for name, limit in table.items() if name in config.__dataclass_fields__}

    check_settings(config, least=own(_LEAST), above=own(_ABOVE), below=own(_BELOW))
