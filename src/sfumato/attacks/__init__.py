"""Attacks: one file per attack. Each sees exactly what leaves the device, through an `Observer`."""

from sfumato.attacks.base import Attack, Fit, Observer, hold_out
from sfumato.attacks.decoder import DecoderAttack, DecoderConfig
from sfumato.attacks.evaluate import Inversion, chosen_images, invert
from sfumato.attacks.gan import GanAttack, GanConfig, gradient_penalty
from sfumato.attacks.learned import LearnedAttack
from sfumato.attacks.nearest import NearestAttack, NearestConfig
from sfumato.attacks.queries import Queries, aggregate, encode_repeated
from sfumato.attacks.registry import ATTACKS, build, config_from_dict, name_of
from sfumato.attacks.ridge import RidgeAttack, RidgeConfig
from sfumato.attacks.settings import AttackConfig, LearnedConfig

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackConfig",
    "DecoderAttack",
    "DecoderConfig",
    "Fit",
    "GanAttack",
    "GanConfig",
    "Inversion",
    "LearnedAttack",
    "LearnedConfig",
    "NearestAttack",
    "NearestConfig",
    "Observer",
    "Queries",
    "RidgeAttack",
    "RidgeConfig",
    "aggregate",
    "build",
    "chosen_images",
    "config_from_dict",
    "encode_repeated",
    "gradient_penalty",
    "hold_out",
    "invert",
    "name_of",
]
