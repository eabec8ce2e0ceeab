"""Clients that ask as often as they can, and what they saw."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Load", "load"]


@dataclass
class Load:
    """What some clients saw, each asking again as soon as it was answered.

    Attributes:
        seconds: how long they asked.
        waits: seconds of each answer.
        failures: of any kind.
        reason: of one of them.
    """

    seconds: float
    waits: list[float] = field(default_factory=list)
    failures: int = 0
    reason: str = ""

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.waits) / self.seconds

    def quantile(self, share: float) -> float:
        """The wait that this share of the answers did not exceed."""
        return float(np.quantile(self.waits, share))


def load(make_call: Callable[[], Callable[[], None]], clients: int, seconds: float) -> Load:
    """Let `clients` threads call as often as they can.

    Args:
        make_call: called once in each thread; gives what is called again and again.
        clients: threads.
        seconds: after which nobody begins another call.

    Raises:
        RuntimeError: a client's first call, which is not counted, failed.
    """
    barrier = threading.Barrier(clients + 1)
    results: list[tuple[list[float], int, str]] = []
    reasons: list[Exception] = []

    def work() -> None:
        waits: list[float] = []
        failures, reason = 0, ""
        try:
            call = make_call()
            call()
        except Exception as error:
            reasons.append(error)
            barrier.abort()
            return
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            return
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            try:
                call()
            except Exception as error:  # counted, and one is kept: whoever asked says what it means
                failures += 1
                reason = repr(error)
            else:
                waits.append(time.perf_counter() - began)
        results.append((waits, failures, reason))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        raise RuntimeError(f"a client's first call failed: {reasons[0]}") from reasons[0]
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    total = Load(time.perf_counter() - began)
    for waits, failures, reason in results:
        total.waits += waits
        total.failures += failures
        total.reason = total.reason or reason
    return total
