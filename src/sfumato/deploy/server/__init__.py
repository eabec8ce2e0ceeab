"""The server of the cloud half: the Open Inference Protocol over REST and gRPC, ONNX Runtime underneath.

A request passes through `access` (tokens), `rest` or `rpc` (the protocol), `tensors` (its values), `batching` (the
queue), `model` (the network) and `reveal` (what is given away of the answer), and back. `service` holds the two
transports together, `supervisor` several processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.deploy.server.settings import ServeConfig
    from sfumato.deploy.server.supervisor import serve

__all__ = ["ServeConfig", "serve"]

_HOME = {"ServeConfig": "sfumato.deploy.server.settings", "serve": "sfumato.deploy.server.supervisor"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sfumato.deploy.server' has no attribute {name!r}")
