"""The settings that every attack with a network to train has."""

from typing import Any, ClassVar, Protocol

from sfumato.compute import Precision
from sfumato.errors import ConfigError

__all__ = ["LearnedConfig", "check_common"]


class LearnedConfig(Protocol):
    """Settings that every learned attack has; the leaf's dataclass says what they mean and their defaults."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def hold_out(self) -> float: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def seed(self) -> int: ...


def check_common(config: LearnedConfig) -> None:
    """Refuse meaningless values of the settings that all learned attacks have.

    Raises:
        ConfigError: one of them is out of its range.
    """
    if min(config.epochs, config.batch_size, config.width) < 1 or config.blocks < 0:
        raise ConfigError("epochs, batch_size and width of an attack must be at least 1, blocks at least 0")
    if not 0 < config.hold_out < 1:
        raise ConfigError(f"hold_out is {config.hold_out}; give a fraction between 0 and 1, such as 0.1")
