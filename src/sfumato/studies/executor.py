"""Many independent pieces of work: one loop that hands out, collects, and tries again; one subclass per place."""

import copy
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Self

from sfumato.cores import thread_environment
from sfumato.errors import ConfigError, SfumatoError, first_line

_POLL_SECONDS = 0.5  # a stop is noticed after at most this long, even while nothing finishes

Work = Callable[[Any], Any]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """How one item ended.

    Attributes:
        item: what was asked for.
        value: what the work returned; None where it did not.
        error: the exception it raised, or a `SfumatoError` where its worker died every time; None where all is well.
        attempts: how often it was started.
    """

    item: Any
    value: Any
    error: Exception | None
    attempts: int


@dataclass(frozen=True)
class Reply:
    """A worker's answer: the value, or the exception that the work raised."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Death:
    """A worker ended without a reply: what is known of the cause and what the user can do, as clauses."""

    cause: str
    remedy: str


class Executor(ABC):
    """Runs independent pieces of work, somewhere. Its workers stay for the next call of `run` and end with the block:

        with LocalExecutor() as executor:
            for outcome in executor.run(items, work): ...

    Args:
        attempts: how often an item is started before its workers' deaths are taken for its own fault.

    Raises:
        ConfigError: `attempts` is less than one.
    """

    def __init__(self, *, attempts: int = 3) -> None:
        self.attempts = at_least_one("attempts", attempts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close([])

    def run(self, items: Sequence[Any], work: Work, *, stop: Stop | None = None) -> Generator[Outcome, None, None]:
        """Give each outcome as it comes, in any order.

        A worker that dies (killed, out of memory, its node lost) has its item run again on another one. An exception
        that `work` raises is an outcome and is not tried again. Closing the generator early, an exception or Ctrl-C
        included, ends every worker.

        Args:
            items: what to do; each must be picklable.
            work: does one of them; a picklable function, that is one defined in a module.
            stop: asked now and then; from when it says True nothing new is started and what runs is waited for. Items
                without an outcome are then not done.
        """
        waiting = deque((item, 1) for item in items)
        running: dict[Any, tuple[Any, int]] = {}
        if waiting:
            self._open(len(waiting))
        try:
            while waiting or running:
                if stop is not None and stop():
                    waiting.clear()
                    running = {handle: entry for handle, entry in running.items() if not self._withdraw(handle)}
                while waiting and len(running) < self._places():
                    running[self._submit(work, waiting[0][0])] = waiting[0]
                    waiting.popleft()
                for handle in self._wait(list(running), _POLL_SECONDS) if running else ():
                    item, attempts = running.pop(handle)
                    report = self._report(handle)
                    if isinstance(report, Reply):
                        yield Outcome(item, report.value, report.error, attempts)
                    elif attempts < self.attempts:
                        waiting.append((item, attempts + 1))
                    else:
                        yield Outcome(item, None, _given_up(report, attempts), attempts)
        finally:
            if running:
                self._close(list(running))

    def _open(self, count: int) -> None:  # noqa: B027
        """Get ready for `count` items."""

    @abstractmethod
    def _places(self) -> int:
        """How many items may run side by side."""

    @abstractmethod
    def _submit(self, work: Work, item: Any) -> Any:
        """Give the item to a worker; a handle of it."""

    @abstractmethod
    def _wait(self, handles: list[Any], seconds: float) -> list[Any]:
        """Which of them have ended; wait at most `seconds` for the first."""

    @abstractmethod
    def _report(self, handle: Any) -> Reply | Death:
        """How one ended."""

    def _withdraw(self, handle: Any) -> bool:
        """Take back what no worker has begun; whether it could be."""
        return False

    @abstractmethod
    def _close(self, handles: list[Any]) -> None:
        """End all workers, whatever they are doing; those of these handles are doing something."""

    @staticmethod
    def unloadable(reason: object) -> Reply:
        """The reply where a worker is alive, but cannot load the work or its item."""
        return Reply(
            error=SfumatoError(
                f"a worker cannot load the work ({reason}); have the same code importable there, "
                "and define the function and its arguments in a module"
            )
        )

    @staticmethod
    def unsendable(error: Exception) -> ConfigError:
        """Where the work or an item cannot even be put into a message."""
        return ConfigError(
            f"the work or an item cannot be sent to a worker ({first_line(error)}); define the function in a module, "
            "and give items of plain values"
        )


class Here:
    """Runs the items in this process, one after the other: for work that cannot be sent away, or must be alone."""

    def run(self, items: Sequence[Any], work: Work, *, stop: Stop | None = None) -> Generator[Outcome, None, None]:
        """See `Executor.run`."""
        for item in items:
            if stop is not None and stop():
                return
            try:
                value, error = work(item), None
            except Exception as raised:
                value, error = None, raised
            yield Outcome(item, value, error, 1)


def perform(work: Work, item: Any, threads: int) -> Reply:
    """`work(item)` on so many threads, as a reply that is certain to survive the way back.

    An exception keeps its type and carries the worker's traceback as a note. One that cannot be sent, or a value
    that cannot, becomes a `SfumatoError` that says so.
    """
    os.environ.update(thread_environment(threads))  # for libraries that the work imports
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    try:
        value = work(item)
    except Exception as error:
        return Reply(error=_sendable(error))
    try:
        ForkingPickler.dumps(value)
    except Exception as error:
        reason = f"the result, a {type(value).__name__}, cannot be sent back from the worker ({error})"
        return Reply(error=SfumatoError(f"{reason}; return plain values or tensors"))
    return Reply(value)


def at_least_one(name: str, value: int) -> int:
    """The value, which a `ConfigError` refuses where it is less than one."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
    return value


def _sendable(error: Exception) -> Exception:
    error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        ForkingPickler.dumps(error)
        copy.copy(error)  # rebuilt as at the other end; fails where a constructor wants more than `args`
    except Exception:
        return SfumatoError(f"{type(error).__name__}: {error}")
    return error


def _given_up(death: Death, attempts: int) -> SfumatoError:
    often = "once" if attempts == 1 else f"{attempts} times"
    return SfumatoError(f"the worker of this item died {often}, the last time because {death.cause}; {death.remedy}")
