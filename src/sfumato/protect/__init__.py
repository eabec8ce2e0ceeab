"""Protecting a model that cannot be retrained: noise with a shape, measured on the frozen halves."""

from sfumato.protect.run import ProtectConfig, protect
from sfumato.protect.shapes import Shape, propose, scores

__all__ = ["ProtectConfig", "Shape", "propose", "protect", "scores"]
