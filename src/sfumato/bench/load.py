"""Clients that ask as often as they can, and how long they waited."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

__all__ = ["Load", "load"]


@dataclass(frozen=True)
class Load:
    """What some clients saw, each asking again as soon as it was answered: seconds in all, and of each answer."""

    seconds: float
    waits: list[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.waits) / self.seconds

    def quantile(self, share: float) -> float:
        """The wait that this share of the answers did not exceed."""
        return float(np.quantile(self.waits, share))


def load(make_call: Callable[[], Callable[[], object]], clients: int, seconds: float) -> Load:
    """Let `clients` threads call as often as they can.

    Args:
        make_call: called once in each thread; gives what is called again and again, at first once without being timed.
        clients: threads.
        seconds: after which nobody begins another call.

    Raises:
        RuntimeError: a call failed: what fails is no load.
    """
    together = threading.Barrier(clients)

    def ask(_: int) -> tuple[float, list[float]]:
        waits: list[float] = []
        try:
            call = make_call()
            call()
            together.wait()
            start = time.perf_counter()
            while (began := time.perf_counter()) < start + seconds:
                call()
                waits.append(time.perf_counter() - began)
        except Exception as error:
            together.abort()
            raise RuntimeError(f"a client's call failed: {error!r}") from error
        return time.perf_counter() - start, waits

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, client) for client in range(clients)]
    errors = [error for client in asked if (error := client.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error.__cause__, threading.BrokenBarrierError)):
        raise error  # what broke the barrier, not that it was broken
    found = [client.result() for client in asked]
    return Load(max(taken for taken, _ in found), [wait for _, waits in found for wait in waits])
