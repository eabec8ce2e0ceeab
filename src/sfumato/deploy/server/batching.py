"""Dynamic batching: a bounded queue in front of a few inference threads.

While every thread is busy, requests wait; the next free thread takes as many of them as fit into one call. An idle
thread takes a lone request at once, unless a delay is set. Batches may be handed over ahead, so that a thread which
becomes free need not wait for the event loop. All waiting is measured by the monotonic clock of the event loop, so a
clock that is set back changes nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.server.refusals import BUSY, INTERNAL, INVALID, LATE, Refusal

__all__ = ["Batcher", "Watcher", "patience_of"]


class Watcher(Protocol):
    """Hears what a batcher does."""

    def queued(self, requests: int) -> None:
        """So many requests wait now."""

    def ran(self, rows: int, seconds: float) -> None:
        """A call of the network took so long."""

    def failed(self, error: BaseException) -> None:
        """A call of the network raised."""


@dataclass(eq=False)
class _Waiting:
    features: NDArray[Any]
    answer: "asyncio.Future[NDArray[np.float32]]"
    arrived: float
    alarm: asyncio.TimerHandle | None = None
    begun: bool = False  # set by the thread; until then the deadline holds, also for what was handed over ahead


class Batcher:
    """Collects the requests of one model; to be used on one event loop.

    Args:
        run: features (N, ...) to logits (N, classes), in a thread.
        executor: where `run` is called.
        threads: calls at the same time.
        max_batch: rows in one call that holds several requests.
        max_delay: seconds that a lone request waits for company while a thread is idle.
        limit: waiting requests, those handed over ahead not counted; the next one is refused.
        watcher: hears about queue and calls.
        ahead: batches that are handed to the executor beyond those that its threads run.
    """

    def __init__(
        self,
        run: Callable[[NDArray[Any]], NDArray[np.float32]],
        executor: Executor,
        *,
        threads: int,
        max_batch: int,
        max_delay: float,
        limit: int,
        watcher: Watcher,
        ahead: int = 0,
    ) -> None:
        self._run = run
        self._executor = executor
        self._threads = threads
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._limit = limit
        self._watcher = watcher
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._running = 0
        self._pump_due = False
        self._alarm: asyncio.TimerHandle | None = None
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def full(self) -> bool:
        """Whether the next request would be refused; asked before its body is read."""
        return len(self._queue) >= self._limit

    async def submit(self, features: NDArray[Any], patience: float) -> NDArray[np.float32]:
        """Logits of one request's rows.

        Args:
            features: (N, ...), checked.
            patience: seconds until a thread must have taken it.

        Raises:
            Refusal: BUSY, the queue is full; LATE, no thread took it in time; INTERNAL, the network failed.
        """
        if self.full:
            raise Refusal(BUSY, f"{self._limit} requests wait already; try again a little later")
        now = self._loop.time()
        waiting = _Waiting(features, self._loop.create_future(), now)
        waiting.alarm = self._loop.call_later(patience, self._expire, waiting)
        self._queue.append(waiting)
        self._empty.clear()
        self._watcher.queued(len(self._queue))
        self._pump_soon()
        try:
            return await waiting.answer
        finally:
            waiting.alarm.cancel()
            if waiting.answer.cancelled():
                self._forget(waiting)  # the client went away: its rows are not computed

    async def drain(self) -> None:
        """Wait until everything that was accepted is answered; nothing waits for company any more."""
        self._draining = True
        self._pump_soon()
        await self._empty.wait()

    def _pump_soon(self) -> None:
        # At the end of this turn of the loop, so that requests which arrived together run together.
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._queue and self._running < self._threads + self._ahead:
            wait = self._wait_for_company()
            if wait > 0:
                self._alarm = self._loop.call_later(wait, self._pump_soon)
                break
            self._start(self._take())
        if not self._queue and not self._running:
            self._empty.set()

    def _wait_for_company(self) -> float:
        if self._max_delay == 0 or self._draining:
            return 0.0
        if sum(len(waiting.features) for waiting in self._queue) >= self._max_batch:
            return 0.0
        return self._queue[0].arrived + self._max_delay - self._loop.time()

    def _take(self) -> list[_Waiting]:
        batch = [self._queue.popleft()]
        rows = len(batch[0].features)
        while self._queue and rows + len(self._queue[0].features) <= self._max_batch:
            batch.append(self._queue.popleft())
            rows += len(batch[-1].features)
        self._watcher.queued(len(self._queue))
        return batch

    def _start(self, batch: list[_Waiting]) -> None:
        self._running += 1
        began = self._loop.time()
        call = self._loop.run_in_executor(self._executor, self._call, batch)
        call.add_done_callback(lambda done: self._finish(batch, done, began))

    def _call(self, batch: list[_Waiting]) -> NDArray[np.float32] | None:
        if all(waiting.answer.done() for waiting in batch):
            return None  # nobody waits any more
        for waiting in batch:
            waiting.begun = True
        features = [waiting.features for waiting in batch]
        return self._run(features[0] if len(features) == 1 else np.concatenate(features))

    def _finish(self, batch: list[_Waiting], done: "asyncio.Future[NDArray[np.float32] | None]", began: float) -> None:
        self._running -= 1
        self._pump_soon()
        rows = sum(len(waiting.features) for waiting in batch)
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        logits = done.result() if error is None else None
        if error is not None:
            self._watcher.failed(error)
        elif logits is not None:
            self._watcher.ran(rows, self._loop.time() - began)
        first = 0
        for waiting in batch:
            last = first + len(waiting.features)
            if not waiting.answer.done():
                if logits is not None:
                    waiting.answer.set_result(logits[first:last])
                else:
                    waiting.answer.set_exception(Refusal(INTERNAL, "the network failed on this batch"))
            first = last

    def _expire(self, waiting: _Waiting) -> None:
        if waiting.begun:
            return
        if not waiting.answer.done():
            waiting.answer.set_exception(Refusal(LATE, "no thread was free before the deadline; try again later"))
        self._forget(waiting)

    def _forget(self, waiting: _Waiting) -> None:
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._watcher.queued(len(self._queue))
            self._pump_soon()


def patience_of(microseconds: object) -> float | None:
    """Seconds of a request's `timeout` parameter, which is in microseconds.

    Raises:
        Refusal: INVALID: it is not a whole number from 1.
    """
    if microseconds is None:
        return None
    if not isinstance(microseconds, int) or isinstance(microseconds, bool) or not 1 <= microseconds <= 2**53:
        raise Refusal(INVALID, "the parameter 'timeout' is not a whole number of microseconds from 1")
    return microseconds / 1e6
