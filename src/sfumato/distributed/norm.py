"""Batch normalisation over the whole batch of all ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.distributed.group import Ranks

__all__ = ["share_batch_norm"]


class _Shared(nn.modules.batchnorm._BatchNorm):
    """In training, mean and variance of the common batch, with their gradient; else what the layer does anyway."""

    def forward(self, input: Tensor) -> Tensor:
        ranks = Ranks.current()
        if ranks.alone or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output, count, mean, var = _Normalise.apply(input, self.weight, self.bias, self.eps, ranks)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
                unbiased = var * (count / (count - 1).clamp(min=1))
                self.running_mean.add_(momentum * (mean.to(self.running_mean) - self.running_mean))
                self.running_var.add_(momentum * (unbiased.to(self.running_var) - self.running_var))
        result: Tensor = output
        return result


class _Shared1d(_Shared, nn.BatchNorm1d):
    pass


class _Shared2d(_Shared, nn.BatchNorm2d):
    pass


class _Shared3d(_Shared, nn.BatchNorm3d):
    pass


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _Shared1d,
    nn.BatchNorm2d: _Shared2d,
    nn.BatchNorm3d: _Shared3d,
}


def share_batch_norm(module: nn.Module) -> None:
    """Let every BatchNorm inside take its statistics over all ranks, in place; names and parameters stay.

    `torch.nn.SyncBatchNorm` does the same on GPUs only, and is no `BatchNorm2d`, by which pruning knows its layers. A
    changed layer still is one; in evaluation and in one process it does what it did before.
    """
    for part in module.modules():
        if (kind := _KINDS.get(type(part))) is not None:
            part.__class__ = kind


class _Normalise(torch.autograd.Function):
    """y = w (x - m) / sqrt(v + eps) + b with moments m, v of the x of all ranks, merged from those of each rank."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        var, mean = torch.var_mean(x.float(), _others(x), correction=0)
        own = torch.cat([mean.double(), var.double(), mean.new_tensor([x.numel() / channels], dtype=torch.float64)])
        stacked = ranks.stack(own)
        means, variances, counts = stacked[:, :channels], stacked[:, channels:-1], stacked[:, -1:]
        count = counts.sum()
        mean64 = (counts * means).sum(0) / count
        var64 = (counts * (variances + (means - mean64).square())).sum(0) / count
        mean, var = mean64.float(), var64.float()
        output = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, (var64 + eps).rsqrt().float(), count)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(count, mean64, var64)
        return output, count, mean64, var64

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.ndim - 2))
        dy = gradients[0].float()
        normed = (x.float() - mean.view(shape)) * inverse.view(shape)
        dbias, dweight = dy.sum(_others(x)), (dy * normed).sum(_others(x))
        # A rank's statistics reach the outputs of all ranks.
        both = ctx.ranks.sum(torch.stack([dbias, dweight]).double()) / count
        rest = dy - both[0].float().view(shape) - normed * both[1].float().view(shape)
        scale = inverse if weight is None else inverse * weight.float()
        dx = (rest * scale.view(shape)).to(x.dtype)
        if weight is None:
            return dx, None, None, None, None
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


def _others(x: Tensor) -> list[int]:
    """All dimensions but the channels."""
    return [0, *range(2, x.ndim)]
