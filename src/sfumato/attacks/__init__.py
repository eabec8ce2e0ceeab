"""Attacks: one file per attack. Each sees exactly what leaves the device, through an `Observer`."""

from sfumato.attacks.base import Attack, Fit, Observer
from sfumato.attacks.decoder import DecoderAttack, DecoderConfig
from sfumato.attacks.evaluate import Inversion, invert

__all__ = ["Attack", "DecoderAttack", "DecoderConfig", "Fit", "Inversion", "Observer", "invert"]
