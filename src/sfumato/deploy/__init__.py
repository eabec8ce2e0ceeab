"""Deployment: a bundle of two ONNX networks and a manifest, the client of the device, the server of the cloud.

The public names are loaded when first used: the edge client needs neither torch nor the exporter.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.deploy.edge import EdgeClient, Prediction
    from sfumato.deploy.export import ExportConfig, Exported, export_bundle
    from sfumato.deploy.manifest import Manifest

__all__ = ["EdgeClient", "ExportConfig", "Exported", "Manifest", "Prediction", "export_bundle"]

_HOME = {
    "EdgeClient": "sfumato.deploy.edge",
    "ExportConfig": "sfumato.deploy.export",
    "Exported": "sfumato.deploy.export",
    "Manifest": "sfumato.deploy.manifest",
    "Prediction": "sfumato.deploy.edge",
    "export_bundle": "sfumato.deploy.export",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sfumato.deploy' has no attribute {name!r}")
