"""Several processes that train one model: what they share, how each finds its part, how they start and end together.

`Ranks.current()` is the only thing that the rest of the library asks; in one process everything it does is a no-op.

The names are loaded when first used: whether there are several processes can be asked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfumato.distributed.started import launched, may_tell

if TYPE_CHECKING:
    from sfumato.distributed.gradients import accumulating, averaging_steps, backward, data_parallel, whole
    from sfumato.distributed.group import Part, Ranks
    from sfumato.distributed.launch import TIMEOUT, joined
    from sfumato.distributed.norm import share_batch_norm

__all__ = [
    "TIMEOUT",
    "Part",
    "Ranks",
    "accumulating",
    "averaging_steps",
    "backward",
    "data_parallel",
    "joined",
    "launched",
    "may_tell",
    "share_batch_norm",
    "whole",
]

_HOME = {
    "accumulating": "gradients",
    "averaging_steps": "gradients",
    "backward": "gradients",
    "data_parallel": "gradients",
    "Part": "group",
    "Ranks": "group",
    "TIMEOUT": "launch",
    "joined": "launch",
    "share_batch_norm": "norm",
    "whole": "gradients",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sfumato.distributed.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sfumato.distributed' has no attribute {name!r}")
