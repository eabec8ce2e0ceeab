"""Stopping several processes together: a signal to any of them becomes a question that is asked after every step."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sfumato.errors import Interrupted

__all__ = ["until_stopped"]


@contextmanager
def until_stopped(*, catch: bool) -> Iterator[Callable[[], bool] | None]:
    """Turn Ctrl-C and SIGTERM, which torchrun and schedulers send, into a flag; a second one acts at once.

    Args:
        catch: False changes nothing and gives None: one process may stop anywhere.

    Raises:
        KeyboardInterrupt: the work inside raised `Interrupted`.
    """
    if not catch:
        yield None
        return
    asked = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        _restore(before)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    except Interrupted:
        raise KeyboardInterrupt from None
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
