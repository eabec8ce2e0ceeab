"""Attacks: one file per attack. Each sees exactly what leaves the device, through an `Observer`."""

from sfumato.attacks.base import Attack, Fit, Observer
from sfumato.attacks.decoder import DecoderAttack, DecoderConfig
from sfumato.attacks.evaluate import Inversion, invert
from sfumato.attacks.gan import GanAttack, GanConfig, gradient_penalty
from sfumato.attacks.learned import LearnedAttack
from sfumato.attacks.registry import ATTACKS, build, config_from_dict, name_of
from sfumato.attacks.settings import LearnedConfig

__all__ = [
    "ATTACKS",
    "Attack",
    "DecoderAttack",
    "DecoderConfig",
    "Fit",
    "GanAttack",
    "GanConfig",
    "Inversion",
    "LearnedAttack",
    "LearnedConfig",
    "Observer",
    "build",
    "config_from_dict",
    "gradient_penalty",
    "invert",
    "name_of",
]
