"""Deployment: a bundle of two ONNX networks and a manifest, the client of the device, the server of the cloud.

The public names are loaded when first used: the edge client needs neither torch nor the exporter.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.deploy.manifest import Manifest

__all__ = ["Manifest"]

_HOME = {"Manifest": "sfumato.deploy.manifest"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sfumato.deploy' has no attribute {name!r}")
