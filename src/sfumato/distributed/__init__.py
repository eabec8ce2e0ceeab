"""Several processes that train one model: what they share, how each finds its part, how they start and end together.

`Ranks.current()` is the only thing that the rest of the library asks; in one process everything it does is a no-op.

The names are loaded when first used: whether there are several processes can be asked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfumato.distributed.started import launched, may_tell

if TYPE_CHECKING:
    from sfumato.distributed.gradients import (
        accumulating,
        averaging_steps,
        backward,
        data_parallel,
        share_batch_norm,
        whole,
    )
    from sfumato.distributed.launch import TIMEOUT, joined
    from sfumato.distributed.ranks import Part, Ranks

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sfumato.distributed' has no attribute {name!r}")
    home = {"Part": "ranks", "Ranks": "ranks", "TIMEOUT": "launch", "joined": "launch"}.get(name, "gradients")
    return getattr(import_module(f"sfumato.distributed.{home}"), name)
