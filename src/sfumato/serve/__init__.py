"""The server of the cloud half: the Open Inference Protocol over REST, on uvicorn as it is.

Supervision: `supervisor` forks workers from a `generation`, everything that was read from the disk at one moment, and
never changes one: a reload starts the next generation. A worker is uvicorn behind a `door`, which counts and times
connections. A request passes through `app` (paths, tokens), `codec` (its values), `batching` (the queue), `core` and
`engines` (the network, and what is given away of its answer).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.serve.settings import ServeConfig
    from sfumato.serve.supervisor import reload, serve

__all__ = ["ServeConfig", "reload", "serve"]

_HOME = {"ServeConfig": "settings", "reload": "supervisor", "serve": "supervisor"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sfumato.serve.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sfumato.serve' has no attribute {name!r}")
