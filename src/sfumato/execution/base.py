"""The interface of all executors, and the one loop behind them: hand out, collect, retry what died."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from sfumato.errors import ConfigError, SfumatoError
from sfumato.execution.worker import Reply

__all__ = ["Crew", "CrewExecutor", "Death", "Executor", "Outcome", "Runner", "Task"]

T = TypeVar("T")
R = TypeVar("R")

# A stop is noticed after at most this long, even while nothing finishes.
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """How one item ended.

    Attributes:
        item: what was asked for.
        value: what the work returned; None where it did not.
        error: the exception it raised, or a `SfumatoError` where its worker died every time; None where all is well.
        attempts: how often it was started.
    """

    item: T
    value: R | None
    error: Exception | None
    attempts: int


class Executor(Protocol):
    """Runs independent pieces of work, somewhere."""

    def run(
        self, items: Sequence[T], work: Callable[[T], R], *, stop: Callable[[], bool] | None = None
    ) -> Generator[Outcome[T, R], None, None]:
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
        ...


@dataclass(frozen=True, eq=False)
class Task(Generic[T]):
    """An item and the number of times it has been started, this one included."""

    item: T
    attempts: int = 1


@dataclass(frozen=True)
class Death:
    """A worker ended without a reply.

    Attributes:
        cause: what is known, as a clause: "it was killed by SIGKILL".
        remedy: what the user can do, as an imperative clause.
    """

    cause: str
    remedy: str


class Crew(ABC, Generic[T, R]):
    """The workers of one `run`, and how to reach them; one subclass per place where work can run."""

    @abstractmethod
    def room(self) -> int:
        """How many more tasks can be started now."""

    @abstractmethod
    def start(self, task: Task[T]) -> None:
        """Give the task to a worker."""

    @abstractmethod
    def collect(self, seconds: float) -> list[tuple[Task[T], Reply[R] | Death]]:
        """What has ended since the last call, each once; wait at most `seconds` for the first."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, whatever they are doing."""

    def withdraw(self) -> int:
        """Take back started tasks that no worker has begun; how many."""
        return 0


class Runner(Protocol, Generic[T, R]):
    """Does the items of one round; see `CrewExecutor.kept`."""

    def __call__(self, items: Sequence[T], stop: Callable[[], bool] | None) -> Generator[Outcome[T, R], None, None]: ...


class CrewExecutor(ABC):
    """An executor whose subclass says only how a crew is hired.

    Args:
        attempts: how often an item is started before its workers' deaths are taken for its own fault.

    Raises:
        ConfigError: `attempts` is less than one.
    """

    def __init__(self, *, attempts: int = 3) -> None:
        self.attempts = at_least_one("attempts", attempts)

    @abstractmethod
    def _hire(self, work: Callable[[T], R], count: int) -> Crew[T, R]:
        """The crew for `count` items; nothing runs yet."""

    def run(
        self, items: Sequence[T], work: Callable[[T], R], *, stop: Callable[[], bool] | None = None
    ) -> Generator[Outcome[T, R], None, None]:
        """See `Executor.run`."""
        if items:
            with self.kept(work, len(items)) as run:
                yield from run(items, stop)

    @contextmanager
    def kept(self, work: Callable[[T], R], most: int) -> Iterator["Runner[T, R]"]:
        """Workers that stay for several rounds, where one round's outcomes decide the next one's items.

        Gives a function that does the items of a round as `run` does; each round's outcomes have to be taken to their
        end before the next one begins. The workers end with the block.

        Args:
            work: as for `run`.
            most: how many items a round has at most; no more workers are hired.
        """
        crew = self._hire(work, most)
        try:
            yield lambda items, stop: self._round(crew, items, stop)
        finally:
            crew.close()

    def _round(
        self, crew: Crew[T, R], items: Sequence[T], stop: Callable[[], bool] | None
    ) -> Generator[Outcome[T, R], None, None]:
        waiting = deque(Task(item) for item in items)
        running = 0
        while running or waiting:
            if stop is not None and stop():
                waiting.clear()
                running -= crew.withdraw()
            while waiting and crew.room() > 0:
                crew.start(waiting.popleft())
                running += 1
            if not running and not waiting:
                return
            for task, report in crew.collect(_POLL_SECONDS):
                running -= 1
                if isinstance(report, Reply):
                    yield Outcome(task.item, report.value, report.error, task.attempts)
                elif task.attempts < self.attempts:
                    waiting.append(replace(task, attempts=task.attempts + 1))
                else:
                    yield Outcome(task.item, None, _given_up(report, task.attempts), task.attempts)


def at_least_one(name: str, value: int) -> int:
    """The value.

    Raises:
        ConfigError: it is less than one.
    """
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
    return value


def _given_up(death: Death, attempts: int) -> SfumatoError:
    often = "once" if attempts == 1 else f"{attempts} times"
    return SfumatoError(f"the worker of this item died {often}, the last time because {death.cause}; {death.remedy}")
