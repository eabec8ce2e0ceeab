"""What can be known about the processes of a start without torch: the commands of device and server do without it."""

import os
from typing import Any

__all__ = ["keep_store", "launched", "may_tell"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_store: Any = None


def launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started several processes like this one."""
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def may_tell() -> bool:
    """Whether this process is the one to print why all of them end: the first that asks, or rank 0 before they met."""
    if _store is not None:
        try:
            return bool(_store.add("sfumato/told", 1) == 1)
        except RuntimeError:  # whoever kept the store has ended
            return True
    return not launched() or os.environ["RANK"] == "0"


def keep_store(store: Any) -> None:
    """Remember where the processes have met, or that they have parted (None)."""
    global _store
    _store = store
