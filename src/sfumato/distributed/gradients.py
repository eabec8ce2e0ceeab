"""Every rank takes the same step: PyTorch's DistributedDataParallel averages the gradients of the ranks."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sfumato.distributed.collectives import collective
from sfumato.distributed.group import Ranks

__all__ = ["accumulating", "averaging_steps", "backward", "data_parallel"]


def data_parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module with the parameters and buffers of rank 0, whose gradients become the ranks' average.

    In one process it is the module itself. A backward pass need not reach all parameters, and buffers stay with their
    rank: moments and batch statistics are those of all ranks anyway.
    """
    if ranks.alone:
        return module
    options = {"process_group": ranks.group, "find_unused_parameters": True, "broadcast_buffers": False}
    return collective(DistributedDataParallel, module, **options)


def accumulating(module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around forward and backward: until the `last` of a step gradients add up without communication."""
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()


def backward(loss: Tensor, ranks: Ranks) -> None:
    """`loss.backward()`, in which the ranks communicate."""
    if ranks.alone:
        loss.backward()
    else:
        collective(loss.backward)


@contextmanager
def averaging_steps(optimizers: Iterable[Optimizer], ranks: Ranks) -> Iterator[None]:
    """Inside, inner adversaries with a backward pass of their own step by the ranks' average gradients, too.

    Gradients that are the average already stay what they are.
    """

    def average(optimizer: Optimizer, *_: Any) -> None:
        found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if found:
            flat = ranks.sum(torch.cat([gradient.flatten() for gradient in found]) / ranks.size)
            for gradient, part in zip(found, flat.split([gradient.numel() for gradient in found]), strict=True):
                gradient.copy_(part.view_as(gradient))

    handles = [] if ranks.alone else [optimizer.register_step_pre_hook(average) for optimizer in optimizers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
