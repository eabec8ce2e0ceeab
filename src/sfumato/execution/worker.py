"""What happens inside a worker, wherever it runs: do the work, and send back a value or an exception."""

import copy
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Generic, TypeVar

import torch

from sfumato.errors import ConfigError, SfumatoError

__all__ = ["Reply", "perform", "unloadable", "unsendable", "usable_cores"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Reply(Generic[R]):
    """A worker's answer: the value, or the exception that the work raised."""

    value: R | None = None
    error: Exception | None = None


def perform(work: Callable[[T], R], item: T, threads: int) -> Reply[R]:
    """`work(item)` on so many threads, as a reply that is certain to survive the way back.

    An exception keeps its type and carries the worker's traceback as a note. One that cannot be sent, or a value
    that cannot, becomes a `SfumatoError` that says so.
    """
    torch.set_num_threads(threads)
    try:
        value = work(item)
    except Exception as error:
        return Reply(error=_sendable(error))
    try:
        ForkingPickler.dumps(value)
    except Exception as error:
        return Reply(
            error=SfumatoError(
                f"the result, a {type(value).__name__}, cannot be sent back from the worker ({error}); "
                "return plain values or tensors"
            )
        )
    return Reply(value)


def unloadable(reason: object) -> Reply[R]:
    """The reply where a worker is alive, but cannot load the work or its item."""
    return Reply(
        error=SfumatoError(
            f"a worker cannot load the work ({reason}); have the same code importable there, "
            "and define the function and its arguments in a module"
        )
    )


def unsendable(error: Exception) -> ConfigError:
    """Where the work or an item cannot even be put into a message."""
    reason = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"the work or an item cannot be sent to a worker ({reason}); define the function in a module, "
        "and give items of plain values"
    )


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sendable(error: Exception) -> Exception:
    error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        ForkingPickler.dumps(error)
        copy.copy(error)  # rebuilt as at the other end; fails where a constructor wants more than `args`
    except Exception:
        return SfumatoError(f"{type(error).__name__}: {error}")
    return error
