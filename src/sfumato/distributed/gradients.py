"""Every rank takes the same step: the ranks average gradients, and their losses can see all rows of a batch."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sfumato.distributed.collectives import collective
from sfumato.distributed.group import Ranks

__all__ = ["accumulating", "averaging_steps", "backward", "data_parallel", "whole"]


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


def whole(rows: Tensor, ranks: Ranks | None = None) -> Tensor:
    """(n_r, ...) -> (n, ...): the rows of all ranks in rank order; in one process the rows themselves.

    The gradient goes back to this rank's own rows, times n / n_r: a loss L of the whole batch, computed on every rank,
    then has the same gradient under the ranks' average, weighed by their shares n_r / n, as in one process.
    """
    ranks = Ranks.current() if ranks is None else ranks
    if ranks.alone:
        return rows
    result: Tensor = _Whole.apply(rows, ranks)
    return result


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        gathered, counts = ranks.gather(rows), ranks.objects(len(rows))
        start = sum(counts[: ranks.rank])
        ctx.own, ctx.factor = slice(start, start + len(rows)), len(gathered) / max(1, len(rows))
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own] * ctx.factor, None
