"""Every rank takes the same step: average gradients, batch norm over the whole batch, losses that see all its rows."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sfumato.distributed.ranks import Ranks, collective

__all__ = ["accumulating", "averaging_steps", "backward", "data_parallel", "share_batch_norm", "whole"]


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


class _Sum(torch.autograd.Function):
    """The sum over the ranks; what is computed from it on any rank comes back as a gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(gradients[0]), None


def share_batch_norm(module: nn.Module) -> None:
    """Let every BatchNorm inside take its statistics over all ranks, in place; names and parameters stay.

    `torch.nn.SyncBatchNorm` does the same on GPUs only, and is no `BatchNorm2d`, by which pruning knows its layers. A
    changed layer still is one; in evaluation and in one process it does what it did before.
    """
    for part in module.modules():
        if type(part) in _SHARED:
            part.__class__ = _SHARED[type(part)]


class _Shared(nn.modules.batchnorm._BatchNorm):
    """In training, mean and variance of the common batch, with their gradient; else what the layer does anyway."""

    def forward(self, input: Tensor) -> Tensor:
        ranks = Ranks.current()
        if ranks.alone or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x, channels = input.float(), input.shape[1]
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        # In float64, so that the square of a mean far from 0 takes nothing from the variance.
        n, m = mean.new_tensor([x.numel() / channels], dtype=torch.float64), mean.double()
        count, first, second = _Sum.apply(torch.cat([n, n * m, n * (var.double() + m * m)]), ranks).split(
            [1, channels, channels]
        )
        mean = first / count
        var = second / count - mean * mean
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
                unbiased = var * (count / (count - 1).clamp(min=1))
                self.running_mean.add_(momentum * (mean.to(self.running_mean) - self.running_mean))
                self.running_var.add_(momentum * (unbiased.to(self.running_var) - self.running_var))
        shape = (1, -1, *[1] * (x.ndim - 2))
        normed = (x - mean.float().view(shape)) * (var + self.eps).rsqrt().float().view(shape)
        if self.affine:
            normed = torch.addcmul(self.bias.float().view(shape), normed, self.weight.float().view(shape))
        return normed.to(input.dtype)


_SHARED: dict[type, Any] = {
    kind: type(kind.__name__, (_Shared, kind), {}) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}
