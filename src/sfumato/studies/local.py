"""Processes of this machine, one item at a time each; the next item goes to whoever is idle."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from sfumato.cores import thread_environment, usable_cores
from sfumato.studies.executor import Death, Executor, Reply, Work, at_least_one, perform

_GRACE_SECONDS = 5.0


class LocalExecutor(Executor):
    """Run work in processes of this machine; even a single worker is one, so that its death is survived.

    The workers die with this process, even when it is killed. As always with spawned processes, a script that calls
    this needs its `if __name__ == "__main__":`.

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
        self._crew: list[_Worker] = []
        self._doing: dict[Future[Reply], _Worker] = {}

    def _open(self, count: int) -> None:
        self._limit = min(count, self.workers or usable_cores())
        self._share = self.threads or max(1, usable_cores() // self._limit)

    def _places(self) -> int:
        return self._limit

    def _submit(self, work: Work, item: Any) -> "Future[Reply]":
        try:
            call = bytes(ForkingPickler.dumps((work, item)))
        except Exception as error:
            raise self.unsendable(error) from error
        for worker in [worker for worker in self._crew if worker not in self._doing.values()]:
            try:
                future = worker.pool.submit(_perform, call, self._share)
            except BrokenProcessPool:  # it died idle, which costs no item an attempt
                self._crew.remove(worker)
            else:
                self._doing[future] = worker
                return future
        # A pool each, so that a death is known to be this one's.
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin)
        others = multiprocessing.active_children()
        with _environment(self._share):
            future = pool.submit(_perform, call, self._share)
        process = next(child for child in multiprocessing.active_children() if child not in others)
        self._crew.append(_Worker(pool, process))
        self._doing[future] = self._crew[-1]
        return future

    def _wait(self, handles: list[Any], seconds: float) -> list[Any]:
        return list(wait(handles, seconds, FIRST_COMPLETED).done)

    def _report(self, handle: Any) -> Reply | Death:
        worker = self._doing.pop(handle)
        try:
            reply: Reply = handle.result()
        except BrokenProcessPool:
            self._crew.remove(worker)
            return _death(_exit_code(worker.process))
        return reply

    def _close(self, handles: list[Any]) -> None:
        for worker in self._doing.values():
            worker.process.terminate()
        for worker in self._crew:
            worker.pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in self._crew:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
        self._crew, self._doing = [], {}


class _Worker(NamedTuple):
    pool: ProcessPoolExecutor
    process: BaseProcess


def _begin() -> None:
    # Ctrl-C reaches the whole terminal group; what it means for running items is decided in one place, not here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, and a resumed run must not meet them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _perform(call: bytes, threads: int) -> Reply:
    try:
        work, item = ForkingPickler.loads(call)
    except Exception as error:
        return Executor.unloadable(error)
    try:
        return perform(work, item, threads)
    except SystemExit as error:  # the end of this worker, which the pool would take for an answer
        os._exit(error.code if isinstance(error.code, int) else 1)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Thread counts as a new process inherits them: some libraries read them at import, before any line of ours.

    A new process runs the main module's file first; where that is none, as with a script from standard input, it is not
    told of it.
    """
    told = thread_environment(threads)
    before = {name: os.environ[name] for name in told if name in os.environ}
    os.environ.update(told)
    main = vars(sys.modules["__main__"])
    hidden = {"__file__": main.pop("__file__")} if not os.path.exists(main.get("__file__") or os.curdir) else {}
    try:
        yield
    finally:
        main.update(hidden)
        for name in told:
            del os.environ[name]
        os.environ.update(before)


def _exit_code(process: BaseProcess) -> int | None:
    """How it ended. The pool's own thread waits for it too, and whoever comes second sees no code for a moment."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.exitcode


def _death(exitcode: int | None) -> Death:
    if exitcode is not None and exitcode > 0:
        return Death(
            f"it ended with exit code {exitcode}",
            'read its own message above; a script that starts workers needs its `if __name__ == "__main__":`',
        )
    cause = "it closed its pipe" if exitcode is None else f"it was killed by {signal.Signals(-exitcode).name}"
    return Death(cause, "free some memory or use fewer workers, then run it again")
