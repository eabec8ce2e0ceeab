"""Starting as one of several processes (torchrun), and ending together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from sfumato.distributed.ranks import Ranks, cause_of
from sfumato.distributed.started import keep_store, launched
from sfumato.errors import ConfigError, RankLost

__all__ = ["TIMEOUT", "joined"]

TIMEOUT = 600.0
"""Seconds after which a rank that does not answer ends the others; one that has died ends them at once."""


@contextmanager
def joined(device: str = "auto", *, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started; without torchrun, or where they have met, just go on.

    gloo carries what lies on the CPU and NCCL what lies on a GPU; each rank takes the GPU of its LOCAL_RANK.

    Args:
        device: `auto`, `cpu` or `cuda`, as in the settings.
        timeout: seconds to wait for another rank.

    Raises:
        ConfigError: a rank has no GPU of its own, or the environment is not torchrun's.
        RankLost: the others did not come.
    """
    if not launched() or (dist.is_available() and dist.is_initialized()):
        yield Ranks.current()
        return
    if not dist.is_available():
        raise ConfigError("this build of PyTorch has no torch.distributed; start one process without torchrun")
    from torch.distributed.rendezvous import rendezvous

    rank, size, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "gloo"
    if device != "cpu" and (torch.cuda.is_available() or device != "auto"):
        _take_gpu(device, local)
        backend = "cpu:gloo,cuda:nccl"
    patience = timedelta(seconds=timeout)
    try:
        store, rank, size = next(iter(rendezvous("env://", rank, size, timeout=patience)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, OSError, ValueError) as error:
        raise RankLost(
            f"rank {rank} did not meet the other {size - 1} ranks at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({cause_of(error)}); start all of them with torchrun"
        ) from error
    keep_store(store)
    yield Ranks.current()
    # Not reached by an error: the others may wait for this rank, and only its leaving the process tells them.
    dist.destroy_process_group()
    keep_store(None)


def _take_gpu(device: str, local: int) -> None:
    if device not in ("auto", "cuda"):
        raise ConfigError(f"device is {device}, but each rank needs a GPU of its own; give --device cuda, or cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            "device cuda was asked for, but PyTorch sees no GPU, and NCCL needs one per rank; use --device cpu"
        )
    if local >= count:
        raise ConfigError(
            f"there are more ranks on this machine than its {count} GPUs; start torchrun with --nproc-per-node {count}"
        )
    torch.cuda.set_device(local)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ConfigError(f"{name} is {os.environ[name]!r} in the environment; start the ranks with torchrun") from None
