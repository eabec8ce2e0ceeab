"""Tensors that travel between the processes of a group; one process alone needs no communication."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.errors import ConfigError, RankLost

__all__ = ["Collectives", "cause_of", "collective"]

T = TypeVar("T")


def collective(operation: Callable[..., T], *values: Any, **options: Any) -> T:
    """Call something that all ranks have to call.

    Raises:
        RankLost: it failed, which means that another rank ended, does not answer, or does something else.
    """
    try:
        return operation(*values, **options)
    except RuntimeError as error:
        cause = cause_of(error)
        raise RankLost(
            f"another process of this training ended or stopped answering ({cause}); the same command resumes from the "
            "last checkpoint"
        ) from error


def cause_of(error: BaseException) -> str:
    """What a library says went wrong, without the place in its source and without its guesses."""
    text = re.sub(r"^\[[^\]]*\] ", "", str(error).strip()) or type(error).__name__
    return re.split(r"\. |\n", text)[0][:200].rstrip(".")


class Collectives:
    """Sums and rows over the processes of a group, seen from one of them.

    Results are the same bits on all ranks: sums come from all-reduce, as the gradients of any data-parallel training.

    Args:
        group: a process group; None for a process alone, to which every method gives back what it was given.

    Attributes:
        rank: number of this process in the group, from 0.
        size: number of processes.

    Raises:
        ConfigError: this process does not belong to the group.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise ConfigError("this process is not part of the process group that was given; call on its ranks only")
        self._devices = {"cpu"} if group is None else _device_types(group)

    @property
    def alone(self) -> bool:
        """Whether there is only this process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes, prints and evaluates."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, a new tensor."""
        return values if self.alone else self._reduce(values, dist.ReduceOp.SUM)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, True where it is on any rank."""
        if self.alone:
            return flags
        found = self._reduce(torch.tensor([int(flag) for flag in flags]), dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in found.tolist())

    def total(self, count: int) -> int:
        """The sum of a number over the ranks."""
        return count if self.alone else int(self.sum(torch.tensor(count)))

    def stack(self, values: Tensor) -> Tensor:
        """(ranks, ...) the values of all ranks, which have one shape."""
        if self.alone:
            return values[None]
        carried = self._carried(values).contiguous()
        found = [torch.empty_like(carried) for _ in range(self.size)]
        collective(dist.all_gather, found, carried, group=self.group)
        return torch.stack(found).to(values.device)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all ranks in rank order; their numbers may differ."""
        if self.alone:
            return rows
        counts = self.stack(torch.tensor(len(rows))).tolist()
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([part[:count] for part, count in zip(self.stack(padded), counts, strict=True)])

    def objects(self, value: T) -> list[T]:
        """A value of each rank, in rank order; whatever can be pickled."""
        found: list[Any] = [value] * self.size
        if not self.alone:
            collective(dist.all_gather_object, found, value, group=self.group)
        return found

    def _reduce(self, values: Tensor, how: Any) -> Tensor:
        carried = self._carried(values).clone(memory_format=torch.contiguous_format)
        collective(dist.all_reduce, carried, op=how, group=self.group)
        return carried.to(values.device)

    def _carried(self, values: Tensor) -> Tensor:
        """The values on a device that the group's backend can send from."""
        if values.device.type in self._devices:
            return values
        return values.cuda() if "cuda" in self._devices else values.cpu()


def _device_types(group: "dist.ProcessGroup") -> set[str]:
    return {entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")}
