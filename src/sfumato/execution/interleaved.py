"""Several pieces of work in this process, a step of one after a step of the other, each on a GPU stream of its own."""

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from sfumato.execution.base import Crew, CrewExecutor, Death, Task, at_least_one
from sfumato.execution.turns import Rotation, Withdrawn
from sfumato.execution.worker import Reply, perform

__all__ = ["InterleavedExecutor"]

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 4


class InterleavedExecutor(CrewExecutor):
    """Run work in threads that take turns, for a GPU that one training leaves idle.

    A small network with a batch of 128 uses a part of a large GPU. Processes on one GPU do not run at the same time, a
    process's streams do: while the kernels of one step run, the next training's step is put into its own stream. Work
    passes the turn on between its steps with `sfumato.execution.next_turn()`, as trainings and attacks do wherever they
    ask whether to stop; work that never does runs alone until its end.

    All threads share this process and its fate: unlike with `LocalExecutor`, what kills it ends everything.

    Args:
        at_once: pieces of work side by side; each needs its memory on the device.
        device: whose streams to use; None takes the GPU where there is one.
    """

    def __init__(self, at_once: int = _AT_ONCE, device: str | None = None) -> None:
        super().__init__(attempts=1)
        self.at_once = at_least_one("at_once", at_once)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _hire(self, work: Callable[[T], R], count: int) -> "Crew[T, R]":
        return _Threads(work, min(count, self.at_once), self.device)


class _Threads(Crew[T, R]):
    def __init__(self, work: Callable[[T], R], limit: int, device: torch.device) -> None:
        self._work = work
        self._limit = limit
        self._device = device
        self._rotation = Rotation()
        self._ended: queue.SimpleQueue[tuple[Task[T], Reply[R]]] = queue.SimpleQueue()
        self._running: list[threading.Thread] = []

    def room(self) -> int:
        self._running = [thread for thread in self._running if thread.is_alive()]
        return self._limit - len(self._running)

    def start(self, task: Task[T]) -> None:
        thread = threading.Thread(target=self._do, args=(task,), daemon=True)
        self._running.append(thread)
        thread.start()

    def collect(self, seconds: float) -> list[tuple[Task[T], Reply[R] | Death]]:
        try:
            task, reply = self._ended.get(timeout=seconds)
        except queue.Empty:
            return []
        return [(task, reply)]

    def close(self) -> None:
        self._rotation.end()
        for thread in self._running:
            thread.join()

    def _do(self, task: Task[T]) -> None:
        try:
            self._rotation.join()
            with self._stream():
                reply: Reply[R] = perform(self._work, task.item, torch.get_num_threads())
            self._rotation.leave()
        except Withdrawn:
            return
        self._ended.put((task, reply))

    def _stream(self) -> AbstractContextManager[object]:
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))
