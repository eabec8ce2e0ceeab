"""The settings that all attacks have, and those of every attack with a network to train."""

from typing import Any, ClassVar, Protocol

from sfumato.compute import Precision
from sfumato.errors import ConfigError

__all__ = ["AttackConfig", "LearnedConfig", "check_common", "check_share"]


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


def check_common(config: LearnedConfig) -> None:
    """Refuse meaningless values of the settings that all learned attacks have.

    Raises:
        ConfigError: one of them is out of its range.
    """
    if min(config.epochs, config.batch_size, config.width) < 1 or config.blocks < 0:
        raise ConfigError("epochs, batch_size and width of an attack must be at least 1, blocks at least 0")
    check_share(config.hold_out)


def check_share(hold_out: float) -> None:
    """Refuse a share that leaves nothing to learn from, or nothing to judge on.

    Raises:
        ConfigError: it is not between 0 and 1.
    """
    if not 0 < hold_out < 1:
        raise ConfigError(f"hold_out is {hold_out}; give a fraction between 0 and 1, such as 0.1")
