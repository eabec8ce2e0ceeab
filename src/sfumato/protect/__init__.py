"""Protecting a model that cannot be retrained: noise with a shape, measured on the frozen halves."""

from sfumato.protect.run import ProtectConfig, protect

__all__ = ["ProtectConfig", "protect"]
