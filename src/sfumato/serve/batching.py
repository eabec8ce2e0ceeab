"""Dynamic batching: a bounded queue in front of a few inference threads.

While every thread is busy, requests wait; a thread that becomes free takes from the queue itself, without asking the
event loop, as many of them as one call should hold. An idle thread takes a lone request at once. All waiting is
measured by a monotonic clock, so a clock that is set back changes nothing.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.serve.errors import Refusal

__all__ = ["Batcher"]


@dataclass(eq=False)
class _Waiting:
    features: NDArray[Any]
    answer: "asyncio.Future[NDArray[np.float32]]"
    arrived: float


class Batcher:
    """Collects the requests of one model; to be used on one event loop.

    Args:
        run: features (N, ...) to logits (N, classes), in a thread.
        executor: where `run` is called; several models may share it, and take turns batch by batch.
        threads: calls at the same time.
        max_batch: rows in one call that holds several requests.
        limit: waiting requests; the next one is refused.
        watcher: hears about queue and calls, from any thread, as `core.ModelMetrics` does.
        spread: a call holds at most an even share of what is asked for now, with one share left in the queue. For
            networks to which a larger batch is hardly cheaper by the row: no thread has to wait until the clients of
            the last batch have asked again.
    """

    def __init__(
        self,
        run: Callable[[NDArray[Any]], NDArray[np.float32]],
        executor: Executor,
        *,
        threads: int,
        max_batch: int,
        limit: int,
        watcher: Any,
        spread: bool = False,
    ) -> None:
        self._run = run
        self._executor = executor
        self._threads = threads
        self._max_batch = max_batch
        self._limit = limit
        self._watcher = watcher
        self._spread = spread
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # guards the four that follow
        self._queue: deque[_Waiting] = deque()
        self._queued_rows = 0
        self._running_rows = 0
        self._running = 0
        self._pump_due = False

    @property
    def full(self) -> bool:
        """Whether the next request would be refused; asked before its body is read."""
        idle = self._threads - self._running  # each will take one request at least
        return len(self._queue) >= self._limit + idle

    async def submit(self, features: NDArray[Any], patience: float) -> NDArray[np.float32]:
        """Logits of one request's rows, of which a thread must have taken them after `patience` seconds.

        Refused: BUSY, the queue is full; LATE, no thread took it in time; INTERNAL, the network failed.
        """
        if self.full:
            raise Refusal("busy", f"{self._limit} requests wait already; try again a little later")
        waiting = _Waiting(features, self._loop.create_future(), time.monotonic())
        alarm = self._loop.call_later(patience, self._expire, waiting)
        with self._lock:
            self._queue.append(waiting)
            self._queued_rows += len(features)
            self._watcher.queued(len(self._queue))
        self._pump_soon()
        try:
            return await waiting.answer
        finally:
            alarm.cancel()
            if waiting.answer.cancelled():
                self._forget(waiting)  # the client went away: its rows are not computed

    def _pump_soon(self) -> None:
        # At the end of this turn of the loop, so that requests which arrived together run together.
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Wake as many idle threads as have something to do."""
        self._pump_due = False
        with self._lock:
            calls = min(self._threads - self._running, -(-self._queued_rows // self._most_rows()))
            self._running += calls
        for _ in range(calls):
            self._executor.submit(self._work)

    def _most_rows(self) -> int:
        if not self._spread:
            return self._max_batch
        share = -(-(self._queued_rows + self._running_rows) // (self._threads + 1))
        return max(1, min(self._max_batch, share))

    def _take(self) -> list[_Waiting]:
        most = self._most_rows()
        batch: list[_Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + len(self._queue[0].features) <= most):
            batch.append(self._queue.popleft())
            rows += len(batch[-1].features)
        self._queued_rows -= rows
        self._running_rows += rows
        self._watcher.queued(len(self._queue))
        return batch

    def _work(self) -> None:
        """One call of the network, in a thread; the next one queues up behind those of other models."""
        with self._lock:
            batch = self._take()
        features = [waiting.features for waiting in batch]
        rows = sum(map(len, features))
        logits, error = None, None
        began = time.monotonic()
        try:
            if batch:  # they may have gone in the meantime
                logits = self._run(features[0] if len(features) == 1 else np.concatenate(features))
                self._watcher.ran(rows, time.monotonic() - began)
        except BaseException as caught:  # a thread that ends without an answer would leave the clients waiting
            error = caught
            self._watcher.failed(error)
        with self._lock:
            self._running_rows -= rows
            go_on = bool(self._queue)
            if not go_on:
                self._running -= 1
        with contextlib.suppress(RuntimeError):  # everything is being shut down, and nobody waits
            self._loop.call_soon_threadsafe(self._finish, batch, logits)
            if go_on:
                self._executor.submit(self._work)

    def _finish(self, batch: list[_Waiting], logits: NDArray[np.float32] | None) -> None:
        first = 0
        for waiting in batch:
            last = first + len(waiting.features)
            if not waiting.answer.done():
                if logits is not None:
                    waiting.answer.set_result(logits[first:last])
                else:
                    waiting.answer.set_exception(Refusal("internal", "the network failed on this batch"))
            first = last
        if self._queue:
            self._pump_soon()

    def _expire(self, waiting: _Waiting) -> None:
        if self._forget(waiting) and not waiting.answer.done():
            waiting.answer.set_exception(Refusal("late", "no thread was free before the deadline; try again later"))

    def _forget(self, waiting: _Waiting) -> bool:
        """Take a request out of the queue; False where a thread has it already."""
        with self._lock:
            if waiting not in self._queue:
                return False
            self._queue.remove(waiting)
            self._queued_rows -= len(waiting.features)
            self._watcher.queued(len(self._queue))
        return True
