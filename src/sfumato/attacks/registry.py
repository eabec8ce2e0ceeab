"""The attacks by name, so that callers know none of them."""

from typing import Any, NamedTuple

from sfumato.attacks.base import Attack
from sfumato.attacks.cloud_only import CloudOnlyAttack, CloudOnlyConfig
from sfumato.attacks.decoder import DecoderAttack, DecoderConfig
from sfumato.attacks.gan import GanAttack, GanConfig
from sfumato.attacks.nearest import NearestAttack, NearestConfig
from sfumato.attacks.optimization import OptimizationAttack, OptimizationConfig
from sfumato.attacks.posterior import PosteriorAttack, PosteriorConfig
from sfumato.attacks.ridge import RidgeAttack, RidgeConfig
from sfumato.attacks.settings import AttackConfig
from sfumato.attacks.strong import StrongAttack, StrongConfig
from sfumato.errors import ConfigError

__all__ = ["ATTACKS", "Entry", "build", "config_from_dict", "name_of"]


class Entry(NamedTuple):
    """An attack and the class of its settings."""

    attack: type[Attack]
    config: type[Any]


ATTACKS: dict[str, Entry] = {
    "decoder": Entry(DecoderAttack, DecoderConfig),
    "gan": Entry(GanAttack, GanConfig),
    "ridge": Entry(RidgeAttack, RidgeConfig),
    "nearest": Entry(NearestAttack, NearestConfig),
    "strong": Entry(StrongAttack, StrongConfig),
    "optimization": Entry(OptimizationAttack, OptimizationConfig),
    "posterior": Entry(PosteriorAttack, PosteriorConfig),
    "cloud-only": Entry(CloudOnlyAttack, CloudOnlyConfig),
}


def name_of(config: AttackConfig) -> str:
    """The name of the attack that these settings belong to.

    Raises:
        ConfigError: they belong to none.
    """
    for name, entry in ATTACKS.items():
        if type(config) is entry.config:
            return name
    known = ", ".join(entry.config.__name__ for entry in ATTACKS.values())
    raise ConfigError(f"{type(config).__name__} holds the settings of no attack; give one of {known}")


def build(config: AttackConfig) -> Any:
    """The attack with these settings, not fitted yet.

    Raises:
        ConfigError: they belong to no attack.
    """
    return ATTACKS[name_of(config)].attack(config)


def config_from_dict(name: str, values: dict[str, Any]) -> Any:
    """The settings of the attack called `name`; what `values` leaves out takes the attack's default.

    Raises:
        ConfigError: the attack or a setting is unknown; the text lists the known ones.
    """
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    cls = ATTACKS[name].config
    known = tuple(cls.__dataclass_fields__)
    for setting in values:
        if setting not in known:
            raise ConfigError(f"the {name} attack has no setting {setting!r}; its settings are {', '.join(known)}")
    return cls(**values)
