"""Batches of a training set for a pass of its own, never from the iterator or the worker processes of the steps."""

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from sfumato.errors import ConfigError
from sfumato.seeds import derive_seed

__all__ = ["MOST_SAMPLES", "aside", "own_batches"]

MOST_SAMPLES = 50_000
"""Samples of all ranks that a refresh looks at, at most; as many as the paper's training set has."""
_REMEDY = "give the refresh batches of its own with data=, or build CEM(update='steps'), which needs no refresh"


def own_batches(loader: Any, most: float = float("inf"), *, sharded: tuple[int, int] | None = None) -> Iterable[Any]:
    """Batches like those of `loader`, at most `most` of them and `MOST_SAMPLES` samples, from a loader of their own.

    The samples are those of the loader's sampler, which is copied, so that the order of the training stays what it is;
    they are mixed, because batches of one class, as a sorted set gives, have other statistics than those of the steps.
    What a `DistributedSampler` repeats to give all ranks equally many is left out. A stream is copied, too.

    Args:
        loader: of the training set.
        most: batches that a training, or an epoch of it, uses at most.
        sharded: (rank, ranks) for a loader that gives every rank all samples.

    Raises:
        ConfigError: the loader cannot be gone through a second time without taking samples from the training.
    """
    if isinstance(loader, Iterator | Mapping | list | tuple) or not isinstance(loader, Iterable):
        raise ConfigError(
            f"the training batches come from a {type(loader).__name__}, which cannot be copied; {_REMEDY}"
        )
    if not isinstance(loader, DataLoader):
        return islice(iter(loader), int(min(most, MOST_SAMPLES)))
    ranks = sharded[1] if sharded is not None else getattr(loader.sampler, "num_replicas", 1)
    size = loader.batch_size or 1
    count = int(min(most, -(-MOST_SAMPLES // (ranks * size))))
    dataset = loader.dataset
    options: dict[str, Any] = {"batch_size": loader.batch_size}
    if isinstance(dataset, IterableDataset):
        dataset = _copied(dataset)
        options["drop_last"] = loader.drop_last
    elif loader.batch_size is None and loader.batch_sampler is not None:  # batches of the user's own making
        options = {"batch_sampler": list(islice(_copied(loader.batch_sampler, dataset), count))}
    else:
        options |= {"sampler": _indices(loader, count * size, sharded), "drop_last": loader.drop_last}
    again: DataLoader[Any] = DataLoader(
        dataset, collate_fn=loader.collate_fn, num_workers=loader.num_workers, worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context, generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip
    return islice(iter(again), count)


def _indices(loader: DataLoader[Any], most: int, sharded: tuple[int, int] | None) -> list[int]:
    sampler = loader.sampler
    drawn: Iterable[int] = _copied(sampler, loader.dataset)
    if isinstance(sampler, DistributedSampler):
        own = -(-(len(sampler.dataset) - sampler.rank) // sampler.num_replicas)  # type: ignore[arg-type]
        most = min(most, own)
    if sharded is not None:
        drawn = islice(drawn, sharded[0], None, sharded[1])
    found = list(islice(drawn, most))
    return [found[i] for i in torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()]


def _copied(source: Any, shared: Any = None) -> Any:
    """A copy with a state of its own; a data set that it knows is shared and not copied."""
    try:
        return copy.deepcopy(source, {id(shared): shared})
    except Exception as error:  # whatever a class of the user's may hold: files, sockets, generators, locks
        raise ConfigError(f"the {type(source).__name__} cannot be copied ({error}); {_REMEDY}") from error


@contextmanager
def aside(epoch: int) -> Iterator[None]:
    """Random numbers that depend on the epoch alone; those of the training are what they were afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    seed = derive_seed(0, "pass", epoch)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
