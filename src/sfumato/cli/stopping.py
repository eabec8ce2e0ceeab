"""Stopping several processes together: a signal to any of them becomes a question that is asked after every step."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sfumato.distributed import may_tell
from sfumato.errors import Interrupted

GRACE = 20.0
"""Seconds until a process that was told to stop, and does not come to the question, ends all the same.

Shorter than the 30 seconds after which torchrun kills without a word.
"""


@contextmanager
def until_stopped(*, catch: bool) -> Iterator[Callable[[], bool] | None]:
    """Turn Ctrl-C and SIGTERM, which torchrun and schedulers send, into a flag; a second one acts at once."""
    if not catch:
        yield None
        return
    asked = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        _restore(before)

    with _given_up_after(GRACE):
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


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """End the process where a signal has come and the work inside goes on for longer than that.

    A handler in Python waits until the call at hand returns, and a collective whose other side has died may not. A
    thread hears of the signal from the descriptor that the interpreter writes to at once.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    over = threading.Event()

    def watch() -> None:
        if heard.recv(1) and not over.wait(seconds):
            threading.Timer(3, os._exit, (130,)).start()  # who is to tell is asked of another process
            if may_tell():
                print(
                    f"\nsfumato: told to stop, and no step ended within {seconds:g} s; the same command resumes from "
                    "the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            os._exit(130)

    watcher = threading.Thread(target=watch, name="stopping", daemon=True)
    watcher.start()
    previous = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        over.set()
        try:
            signal.set_wakeup_fd(previous)
        except (OSError, ValueError):  # whoever had set it (an event loop) has closed it meanwhile
            signal.set_wakeup_fd(-1)
        told.close()
        watcher.join()
        heard.close()
