"""Processes of this machine, one item at a time each; the next item goes to whoever is idle."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVar

from sfumato.execution.base import Crew, CrewExecutor, Death, Task, at_least_one
from sfumato.execution.worker import Reply, perform, unloadable, unsendable, usable_cores

__all__ = ["LocalExecutor"]

T = TypeVar("T")
R = TypeVar("R")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE_SECONDS = 5.0


class LocalExecutor(CrewExecutor):
    """Run work in processes of this machine; even a single worker is one, so that its death is survived.

    The workers are daemons: work may start programs, but no further processes through `multiprocessing`. They die with
    this process, even when it is killed. As always with spawned processes, a script that calls this needs its
    `if __name__ == "__main__":`.

    Args:
        workers: processes side by side; None takes one per usable core, but no more than items.
        threads: of each worker; None shares the cores between the workers.
        attempts: how often an item is started before it is given up, where its workers die.

    Raises:
        ConfigError: a number is less than one.
    """

    def __init__(self, workers: int | None = None, threads: int | None = None, *, attempts: int = 3) -> None:
        super().__init__(attempts=attempts)
        self.workers = None if workers is None else at_least_one("workers", workers)
        self.threads = None if threads is None else at_least_one("threads", threads)

    def _hire(self, work: Callable[[T], R], count: int) -> "Crew[T, R]":
        workers = min(count, self.workers or usable_cores())
        return _Processes(work, workers, self.threads or max(1, usable_cores() // workers))


class _Worker(Generic[T]):
    """A process, the pipe to it and what it is doing; a pipe each, so that a death is known to be this one's."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far_end = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(far_end, threads), daemon=True)
        with _environment(threads):
            self.process.start()
        far_end.close()  # from here on only the worker holds it, and its end is the end of the worker
        self.task: Task[T] | None = None

    def report(self) -> Reply[R] | Death | None:
        """The reply, the death, or None while it works."""
        # In this order: a worker may have replied just before it died.
        alive = self.process.is_alive()
        try:
            if self.connection.poll():
                reply: Reply[R] = self.connection.recv()
                return reply
        except (EOFError, OSError):
            self.process.join(_GRACE_SECONDS)
            return _death(self.process.exitcode)
        except Exception as error:  # the message is whole, but this process cannot rebuild it
            return unloadable(error)
        return None if alive else _death(self.process.exitcode)


class _Processes(Crew[T, R]):
    def __init__(self, work: Callable[[T], R], workers: int, threads: int) -> None:
        self._work = work
        self._limit = workers
        self._threads = threads
        self._workers: list[_Worker[T]] = []

    def room(self) -> int:
        return self._limit - len(self._busy())

    def start(self, task: Task[T]) -> None:
        worker = self._idle()
        worker.task = task
        try:
            worker.connection.send((self._work, task.item))
        except OSError:
            pass  # it died just now, which `collect` will find
        except Exception as error:
            raise unsendable(error) from error

    def collect(self, seconds: float) -> list[tuple[Task[T], Reply[R] | Death]]:
        busy = self._busy()
        if not busy:
            time.sleep(seconds)
        wait([handle for worker in busy for handle in (worker.connection, worker.process.sentinel)], seconds)
        ended: list[tuple[Task[T], Reply[R] | Death]] = []
        for worker in busy:
            report: Reply[R] | Death | None = worker.report()
            if report is not None and worker.task is not None:
                ended.append((worker.task, report))
                worker.task = None
            if isinstance(report, Death):
                self._workers.remove(worker)
                _end([worker])
        return ended

    def close(self) -> None:
        _end(self._workers)
        self._workers = []

    def _busy(self) -> list[_Worker[T]]:
        return [worker for worker in self._workers if worker.task is not None]

    def _idle(self) -> _Worker[T]:
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.process.is_alive():
                return worker
            self._workers.remove(worker)  # died between two items, which costs no item an attempt
            _end([worker])
        self._workers.append(_Worker(self._threads))
        return self._workers[-1]


def _end(workers: list[_Worker[T]]) -> None:
    for worker in workers:
        worker.connection.close()  # an idle one returns
        if worker.task is not None:
            worker.process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()


def _serve(connection: Connection, threads: int) -> None:
    """What a worker process does until its pipe closes."""
    # Ctrl-C reaches the whole terminal group; what it means for running items is decided in one place, not here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            work, item = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:
            reply: Reply[object] = unloadable(error)
        else:
            reply = perform(work, item, threads)
        try:
            connection.send(reply)
        except OSError:
            return


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, and a resumed run must not meet them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Thread counts as a new process inherits them: some libraries read them at import, before any line of ours.

    A new process runs the main module's file first; where that is none, as with a script from standard input, it is not
    told of it.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    main = vars(sys.modules["__main__"])
    hidden = {"__file__": main.pop("__file__")} if not os.path.exists(main.get("__file__") or os.curdir) else {}
    try:
        yield
    finally:
        main.update(hidden)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _death(exitcode: int | None) -> Death:
    if exitcode is not None and exitcode > 0:
        return Death(
            f"it ended with exit code {exitcode}",
            'read its own message above; a script that starts workers needs its `if __name__ == "__main__":`',
        )
    cause = "it closed its pipe" if exitcode is None else f"it was killed by {signal.Signals(-exitcode).name}"
    return Death(cause, "free some memory or use fewer workers, then run it again")
