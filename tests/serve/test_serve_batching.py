"""The queue: what is put together, what is refused, what is waited for."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from sfumato.serve.batching import Batcher
from sfumato.serve.errors import Refusal


class Network:
    """Doubles its rows, when the gate is open; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, features):
        self.batches.append(len(features))
        self.entered.release()
        assert self.gate.wait(20)
        if features.min() < 0:
            raise ValueError("negative")
        return 2 * features


class Watcher:
    def __init__(self) -> None:
        self.depth: list[int] = []
        self.rows: list[int] = []
        self.errors: list[BaseException] = []

    def queued(self, requests: int) -> None:
        self.depth.append(requests)

    def ran(self, rows: int, seconds: float) -> None:
        assert seconds >= 0
        self.rows.append(rows)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)


@asynccontextmanager
async def batching(network, *, threads=1, max_batch=8, limit=100, spread=False):
    watcher = Watcher()
    with ThreadPoolExecutor(threads) as executor:
        batcher = Batcher(
            network,
            executor,
            threads=threads,
            max_batch=max_batch,
            limit=limit,
            watcher=watcher,
            spread=spread,
        )
        batcher.watcher = watcher
        try:
            yield batcher
        finally:
            network.gate.set()


def rows(count, first=0.0):
    return first + np.arange(count * 3, dtype=np.float32).reshape(count, 3)


async def occupy(batcher, network):
    """Keep the only thread busy; what follows has to wait."""
    network.gate.clear()
    task = asyncio.create_task(batcher.submit(rows(1), 20))
    await asyncio.to_thread(network.entered.acquire)
    return task


async def refused(task):
    with pytest.raises(Refusal) as caught:
        await task
    return caught.value.reason


def test_waiting_requests_run_together_and_each_gets_its_own_rows():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            first = await occupy(batcher, network)
            sizes = [3, 1, 4, 2, 5]  # 3 + 1 + 4 fill a batch of 8; 2 + 5 make the next
            tasks = [asyncio.create_task(batcher.submit(rows(n, 10.0 * n), 20)) for n in sizes]
            await asyncio.sleep(0.02)
            network.gate.set()
            answers = await asyncio.gather(first, *tasks)
        assert network.batches == [1, 8, 7]
        for answer, (n, start) in zip(answers, [(1, 0.0), *((n, 10.0 * n) for n in sizes)], strict=True):
            np.testing.assert_array_equal(answer, 2 * rows(n, start))
        assert batcher.watcher.rows == [1, 8, 7]
        assert batcher.watcher.depth[-1] == 0
        assert max(batcher.watcher.depth) == 5

    asyncio.run(work())


def test_requests_of_one_turn_run_together_although_a_thread_is_idle():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            await asyncio.gather(*(batcher.submit(rows(1), 20) for _ in range(5)))
        assert network.batches == [5]

    asyncio.run(work())


def test_a_request_larger_than_a_batch_runs_alone_and_in_its_turn():
    async def work():
        network = Network()
        async with batching(network, max_batch=4) as batcher:
            first = await occupy(batcher, network)
            tasks = [asyncio.create_task(batcher.submit(rows(n), 20)) for n in (2, 9, 1, 1)]
            await asyncio.sleep(0.02)
            network.gate.set()
            await asyncio.gather(first, *tasks)
        assert network.batches == [1, 2, 9, 2]

    asyncio.run(work())


def test_with_a_batch_of_one_nothing_is_put_together():
    async def work():
        network = Network()
        async with batching(network, max_batch=1) as batcher:
            await asyncio.gather(*(batcher.submit(rows(1), 20) for _ in range(4)))
        assert network.batches == [1, 1, 1, 1]

    asyncio.run(work())


def test_one_request_too_many_is_refused_at_once():
    async def work():
        network = Network()
        async with batching(network, limit=3) as batcher:
            first = await occupy(batcher, network)
            tasks = [asyncio.create_task(batcher.submit(rows(1), 20)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert batcher.full
            assert await refused(batcher.submit(rows(1), 20)) == "busy"
            network.gate.set()
            assert len(await asyncio.gather(first, *tasks)) == 4
            assert not batcher.full

    asyncio.run(work())


def test_who_waits_longer_than_its_patience_is_refused_and_not_computed():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            first = await occupy(batcher, network)
            patient = asyncio.create_task(batcher.submit(rows(2), 20))
            assert await refused(batcher.submit(rows(4), 0.03)) == "late"
            network.gate.set()
            await asyncio.gather(first, patient)
        assert network.batches == [1, 2]

    asyncio.run(work())


def test_patience_ends_where_the_network_begins():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            network.gate.clear()
            task = asyncio.create_task(batcher.submit(rows(1), 0.03))
            await asyncio.to_thread(network.entered.acquire)
            await asyncio.sleep(0.06)
            network.gate.set()
            np.testing.assert_array_equal(await task, 2 * rows(1))

    asyncio.run(work())


def test_a_client_that_goes_away_is_not_computed():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            first = await occupy(batcher, network)
            leaving = asyncio.create_task(batcher.submit(rows(4), 20))
            staying = asyncio.create_task(batcher.submit(rows(2), 20))
            await asyncio.sleep(0.01)
            leaving.cancel()
            await asyncio.sleep(0.01)
            network.gate.set()
            await asyncio.gather(first, staying)
        assert network.batches == [1, 2]

    asyncio.run(work())


def test_a_network_that_fails_refuses_its_batch_and_goes_on():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            assert await refused(batcher.submit(-rows(2) - 1, 20)) == "internal"
            np.testing.assert_array_equal(await batcher.submit(rows(1), 20), 2 * rows(1))
        assert [type(error) for error in batcher.watcher.errors] == [ValueError]

    asyncio.run(work())


def test_two_threads_run_two_batches_at_once():
    async def work():
        network = Network()
        async with batching(network, threads=2) as batcher:
            network.gate.clear()
            one = asyncio.create_task(batcher.submit(rows(1), 20))
            await asyncio.to_thread(network.entered.acquire)
            other = asyncio.create_task(batcher.submit(rows(1), 20))
            assert await asyncio.to_thread(network.entered.acquire, True, 10)
            network.gate.set()
            await asyncio.gather(one, other)

    asyncio.run(work())


def test_the_next_batch_needs_no_event_loop():
    async def work():
        network = Network()
        async with batching(network) as batcher:
            tasks = [await occupy(batcher, network)]
            tasks.append(asyncio.create_task(batcher.submit(rows(2), 20)))
            await asyncio.sleep(0.01)
            network.gate.set()
            assert network.entered.acquire(timeout=10)  # this holds the loop up
            assert network.batches == [1, 2]
            await asyncio.gather(*tasks)

    asyncio.run(work())


def test_an_even_share_leaves_something_for_the_thread_that_ends_next():
    async def work():
        network = Network()
        async with batching(network, threads=2, spread=True) as batcher:
            network.gate.clear()
            tasks = [asyncio.create_task(batcher.submit(rows(1), 20)) for _ in range(8)]
            for _ in range(2):
                assert await asyncio.to_thread(network.entered.acquire, True, 10)
            assert network.batches == [3, 3]  # of 8 rows between two threads and the queue
            network.gate.set()
            await asyncio.gather(*tasks)
        assert sum(network.batches) == 8

    asyncio.run(work())


def test_a_share_is_never_larger_than_a_batch_and_a_large_request_is_not_divided():
    async def work():
        network = Network()
        async with batching(network, max_batch=4, spread=True) as batcher:
            first = await occupy(batcher, network)
            tasks = [asyncio.create_task(batcher.submit(rows(n), 20)) for n in (9, *[1] * 11)]
            await asyncio.sleep(0.02)
            network.gate.set()
            await asyncio.gather(first, *tasks)
        assert network.batches[:4] == [1, 9, 4, 4]

    asyncio.run(work())


def test_what_an_idle_thread_takes_at_once_fills_no_place_in_the_queue():
    async def work():
        network = Network()
        async with batching(network, limit=1, max_batch=1) as batcher:
            await asyncio.gather(*(batcher.submit(rows(1), 20) for _ in range(2)))
            taken = await asyncio.gather(*(batcher.submit(rows(1), 20) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in taken] == [np.ndarray, np.ndarray, Refusal]

    asyncio.run(work())


def test_models_that_share_threads_take_turns():
    async def work():
        order = []
        network = Network()
        with ThreadPoolExecutor(1) as executor:

            def batcher(name):
                def run(features):
                    order.append(name)
                    return network(features)

                return Batcher(run, executor, threads=1, max_batch=1, limit=100, watcher=Watcher())

            one, other = batcher("one"), batcher("other")
            first = await occupy(one, network)
            tasks = [asyncio.create_task(model.submit(rows(1), 20)) for model in (one, one, other, other)]
            await asyncio.sleep(0.02)
            network.gate.set()
            await asyncio.gather(first, *tasks)
        assert order == ["one", "other", "one", "other", "one"]

    asyncio.run(work())
