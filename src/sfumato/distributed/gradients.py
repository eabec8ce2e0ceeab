"""Averaging gradients over ranks while the backward pass still runs."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.distributed.collectives import collective
from sfumato.distributed.group import Ranks

__all__ = ["Gradients"]

_BUCKET = 25 << 20  # bytes; as large as those of torch's DistributedDataParallel


class _Bucket:
    """Parameters whose gradients travel together, and after them one number each: whether there was a gradient."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.zeros(sum(sizes) + len(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        *parts, self.present = flat.split([*sizes, len(sizes)])
        self.views = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
        self.flat = flat
        self.waiting = len(parameters)
        self.work: Any = None

    def launch(self, ranks: Ranks) -> None:
        missing = [index for index, parameter in enumerate(self.parameters) if parameter.grad is None]
        self.present.fill_(1.0)
        for view, parameter in zip(self.views, self.parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                torch.div(parameter.grad, ranks.size, out=view)
        for index in missing:
            self.present[index] = 0.0
        self.work = collective(dist.all_reduce, self.flat, group=ranks.group, async_op=True)

    def finish(self) -> None:
        collective(self.work.wait)
        self.work = None
        self.waiting = len(self.parameters)
        present: list[float] | None = None
        for index, (view, parameter) in enumerate(zip(self.views, self.parameters, strict=True)):
            if parameter.grad is None:
                present = self.present.tolist() if present is None else present
                if not present[index]:  # on no rank
                    continue
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(view)


class Gradients:
    """Gives every rank the average of the ranks' gradients, so that all take the same step.

    Parameters are put into buckets from the last to the first, in which order a backward pass reaches them; a full
    bucket is sent while the pass goes on. All parameters of one backward pass are averaged, those of inner adversaries
    with those of the model. An adversary that runs a backward pass of its own has its gradients averaged when its
    optimizer steps.

    In one process it does nothing.

    Args:
        parameters: all that a backward pass may reach.
        optimizers: of inner adversaries.
        ranks: who takes part.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optimizers: Iterable[Optimizer], ranks: Ranks) -> None:
        self.ranks = ranks
        self._handles: list[Any] = []
        self._buckets: list[_Bucket] = []
        self._of: dict[nn.Parameter, _Bucket] = {}
        self._next = 0
        self._doing: Literal["nothing", "adding", "sending"] = "nothing"
        self._late: set[nn.Parameter] = set()
        if ranks.alone:
            return
        for group in _grouped([parameter for parameter in parameters if parameter.requires_grad]):
            bucket = _Bucket(group)
            self._buckets.append(bucket)
            for parameter in group:
                self._of[parameter] = bucket
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._ready))
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """`loss.backward()`, after which, if it was the `last` of a step, the gradients are the ranks' average."""
        if self.ranks.alone:
            loss.backward()
            return
        self._doing, self._next = "sending" if last else "adding", 0
        try:
            loss.backward()
            if last:
                self._launch(all_of_them=True)
                for bucket in self._buckets:
                    bucket.finish()
        finally:
            self._doing = "nothing"

    def close(self) -> None:
        """Leave the parameters alone from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _ready(self, parameter: nn.Parameter) -> None:
        if self._doing == "sending":
            self._of[parameter].waiting -= 1
            self._launch(all_of_them=False)
        elif self._doing == "nothing":
            self._late.add(parameter)

    def _launch(self, *, all_of_them: bool) -> None:
        """Send what is full, on all ranks in the same order."""
        while self._next < len(self._buckets):
            bucket = self._buckets[self._next]
            if bucket.waiting > 0 and not all_of_them:
                return
            bucket.launch(self.ranks)
            self._next += 1

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._late and parameter.grad is not None:
                    parameter.grad.copy_(self.ranks.sum(parameter.grad / self.ranks.size))
                self._late.discard(parameter)


def _grouped(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Runs of one type and device, last parameter first, each of about `_BUCKET` bytes."""
    groups: list[list[nn.Parameter]] = []
    size, kind = 0, None
    for parameter in dict.fromkeys(reversed(parameters)):
        mine = (parameter.dtype, parameter.device)
        if not groups or mine != kind or size > _BUCKET:
            groups.append([])
            size, kind = 0, mine
        groups[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return groups
