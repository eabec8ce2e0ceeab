"""Defences: one file per mechanism. Noise, clipping and quantisation are the channel's (`sfumato.split`)."""

from sfumato.defenses.base import Batch, Defense, Epoch
from sfumato.defenses.cem import CEMDefense

__all__ = ["Batch", "CEMDefense", "Defense", "Epoch"]
