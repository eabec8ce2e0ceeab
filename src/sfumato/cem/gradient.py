"""The gradient of the loss, which is known without a graph, and the factor that both are multiplied by."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.distributed import Ranks
from sfumato.errors import ConfigError


class WithGradient(torch.autograd.Function):
    """A value that does not depend on the batch, with a gradient that does: `weight B^-1 (z - mu)`."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, direction: Tensor, value: Tensor, weight: Tensor | float, product: Callable[..., Tensor]
    ) -> Tensor:
        ctx.save_for_backward(flat, direction)
        ctx.weight, ctx.product = weight, product
        return value.to(direction.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, direction = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the gradient is linear in z, by B^-1
            direction = direction + ctx.product((flat - flat.detach()).to(direction.dtype))
        return (grads[0] * (ctx.weight * direction)).to(flat.dtype), None, None, None, None


def competence_factor(task_loss: Tensor | None, num_classes: int | None, ranks: Ranks) -> Tensor | float:
    """How far the classifier is from chance, over the batch of all ranks; a tensor, so that nothing waits."""
    if task_loss is None:
        return 1.0
    if num_classes is None:
        raise ConfigError("task_loss is compared with log(num_classes), and this CEM has no classes; leave it out")
    loss = task_loss.detach().float()
    if not ranks.alone:
        loss = (ranks.sum(loss.double()) / ranks.size).float()
    return (2.0 * (1.0 - loss / math.log(max(2, num_classes)))).clamp(0.0, 1.0)
