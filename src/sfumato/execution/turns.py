"""Threads that take turns: only one runs Python at a time, and it passes the turn on where it says so."""

import threading
import warnings
from collections import deque
from typing import Any

__all__ = ["Rotation", "Withdrawn", "next_turn"]

_own = threading.local()


class Withdrawn(BaseException):
    """Raised in a thread whose rotation was ended; not an `Exception`, so that no work takes it for its own failure."""


class Rotation:
    """Passes one turn round among threads, in the order in which they joined.

    What a turn sees of the interpreter's global state is its own: filters and handlers of warnings are put back when a
    thread gets its turn again.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._order: deque[int] = deque()
        self._ended = False

    def join(self) -> None:
        """The calling thread takes part from now on, and waits for its first turn."""
        me = threading.get_ident()
        with self._condition:
            self._order.append(me)
            _own.rotation = self
            self._wait(me)

    def leave(self) -> None:
        """The calling thread takes part no longer; the next one has the turn."""
        with self._condition:
            _own.rotation = None
            self._order.remove(threading.get_ident())
            self._condition.notify_all()

    def pass_on(self) -> None:
        """Let every other thread have a turn first.

        Raises:
            Withdrawn: the rotation was ended.
        """
        me = threading.get_ident()
        state = _warning_state()
        with self._condition:
            self._order.rotate(-1)
            self._condition.notify_all()
            self._wait(me)
        _set_warning_state(state)

    def end(self) -> None:
        """Every thread that waits for a turn, or passes it on later, gets `Withdrawn`."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def _wait(self, me: int) -> None:
        self._condition.wait_for(lambda: self._ended or self._order[0] == me)
        if self._ended:
            raise Withdrawn


def next_turn() -> None:
    """Pass the turn on, where the calling thread takes part in a rotation; call it between two steps."""
    rotation: Rotation | None = getattr(_own, "rotation", None)
    if rotation is not None:
        rotation.pass_on()


_WARNINGS = ("filters", "showwarning", "_showwarnmsg_impl")


def _warning_state() -> dict[str, Any]:
    return {name: getattr(warnings, name) for name in _WARNINGS}


def _set_warning_state(state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(warnings, name, value)
    warnings._filters_mutated()  # type: ignore[attr-defined]
