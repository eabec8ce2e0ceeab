"""Which part each rank works on, and what the ranks tell each other; one process alone is a group of one."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.errors import ConfigError, RankLost, SfumatoError

__all__ = ["Part", "Ranks", "cause_of", "collective"]

T = TypeVar("T")
_apart: ContextVar[bool] = ContextVar("sfumato_ranks_apart", default=False)


def collective(operation: Callable[..., T], *values: Any, **options: Any) -> T:
    """Call something that all ranks have to call.

    Raises:
        RankLost: it failed, which means that another rank ended, does not answer, or does something else.
    """
    try:
        return operation(*values, **options)
    except RuntimeError as error:
        raise RankLost(
            f"another process of this training ended or stopped answering ({cause_of(error)}); the same command "
            "resumes from the last checkpoint"
        ) from error


def cause_of(error: BaseException) -> str:
    """What a library says went wrong, without the place in its source and without its guesses."""
    text = re.sub(r"^\[[^\]]*\] ", "", str(error).strip()) or type(error).__name__
    return re.split(r"\. |\n", text)[0][:200].rstrip(".")


@dataclass(frozen=True)
class Part:
    """What one rank works on in a step.

    Attributes:
        rows: which rows of the common batch.
        weight: what its loss, a mean over its rows, is multiplied by, so that the ranks' average is the mean over the
            common batch: rows here x ranks / rows in all.
        counted: whether its rows belong in sums over the ranks; False for all but one rank where each has all rows.
        stream: what its random numbers depend on besides the step; nothing on rank 0, as in one process.
        apart: whether the ranks work without communication in this step.
        fewest: rows of the rank that has the fewest, where they share them.
        most: rows of the rank that has the most.
    """

    rows: slice
    weight: float = 1.0
    counted: bool = True
    stream: tuple[int, ...] = ()
    apart: bool = False
    fewest: int | None = None
    most: int | None = None

    def sizes(self, limit: int | None) -> list[int]:
        """Numbers of rows to work on one after the other, about `limit` each: equally many numbers on all ranks.

        In one process `limit` each and the rest, as `Tensor.split` does.
        """
        count = self.rows.stop - self.rows.start
        if limit is None:
            return [count]
        if self.most is None or self.fewest is None:
            return [min(limit, count - start) for start in range(0, count, limit)]
        pieces = min(-(-self.most // limit), self.fewest)
        return [(number + 1) * count // pieces - number * count // pieces for number in range(pieces)]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, `Ranks.current()` is this process alone where `apart` says so."""
        token = _apart.set(_apart.get() or self.apart)
        try:
            yield
        finally:
            _apart.reset(token)


class Ranks:
    """The processes that work together: who does which part, sums and rows over all, and what they agree on.

    Results are the same bits on all ranks: sums come from all-reduce, as the gradients of any data-parallel training.

    Args:
        group: a process group; None for a process alone, to which every method gives back what it was given.

    Attributes:
        rank: number of this process in the group, from 0.
        size: number of processes.

    Raises:
        ConfigError: this process does not belong to the group.
    """

    ALONE: ClassVar["Ranks"]

    def __init__(self, group: "dist.ProcessGroup | None" = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise ConfigError("this process is not part of the process group that was given; call on its ranks only")

    @classmethod
    def current(cls, distributed: "bool | dist.ProcessGroup" = True) -> "Ranks":
        """The ranks that work together here.

        Args:
            distributed: True for all ranks where torch.distributed is initialised, a process group for its ranks, False
                for this process alone.
        """
        if distributed is False or _apart.get() or not (dist.is_available() and dist.is_initialized()):
            return cls.ALONE
        group = dist.group.WORLD if distributed is True else distributed
        return cls.ALONE if group is None or dist.get_world_size(group) == 1 else cls(group)

    @property
    def alone(self) -> bool:
        """Whether there is only this process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes, prints and evaluates."""
        return self.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Whether this is the first rank on its machine, as torchrun counts them; in one process, True."""
        return self.alone or os.environ.get("LOCAL_RANK", str(self.rank)) == "0"

    def shard(self, count: int) -> slice:
        """The part of `count` things that this rank has: contiguous, in rank order, sizes differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def split(self, count: int) -> Part:
        """The part of a batch of `count` rows that this rank has.

        A batch of fewer than two rows per rank, such as a short last one, is worked on by every rank as a whole: batch
        statistics of single rows would be worthless, and there may be none for some ranks.
        """
        if self.alone:
            return Part(slice(0, count))
        if count < 2 * self.size:
            return Part(slice(0, count), counted=self.is_first, apart=True)
        rows = self.shard(count)
        return Part(
            rows,
            weight=(rows.stop - rows.start) * self.size / count,
            stream=() if self.is_first else (self.rank,),
            fewest=count // self.size,
            most=-(-count // self.size),
        )

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

    def first(self, work: Callable[[], T]) -> T:
        """Let rank 0 alone do something; all ranks get the value, which is pickled on its way, or its error.

        Raises:
            SfumatoError: what `work` raised on rank 0, on all ranks.
        """
        if self.alone:
            return work()
        told: list[Any] = [None]
        with self.together():
            if self.is_first:
                told[0] = work()
        collective(dist.broadcast_object_list, told, group=self.group, group_src=0)
        value: T = told[0]
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """What goes wrong inside on one rank ends all with the same sentence; no communication inside.

        Raises:
            SfumatoError: its own on a rank that has one, on the others the first rank's that had one.
        """
        problem: SfumatoError | None = None
        try:
            yield
        except SfumatoError as error:
            problem = error
        problems = [other for other in (problem, *self.objects(problem)) if other is not None]
        if problems:
            raise problems[0]

    def check_same(self, values: dict[str, Any], advice: str) -> None:
        """Refuse to go on where the ranks have different values under a name.

        Raises:
            ConfigError: they differ.
        """
        told = self.objects(values)
        for rank, theirs in enumerate(told):
            if changed := [name for name in theirs if theirs[name] != told[0].get(name)]:
                raise ConfigError(f"rank {rank} has another {' and another '.join(changed)} than rank 0; {advice}")

    def _reduce(self, values: Tensor, how: Any) -> Tensor:
        carried = self._carried(values).clone(memory_format=torch.contiguous_format)
        collective(dist.all_reduce, carried, op=how, group=self.group)
        return carried.to(values.device)

    def _carried(self, values: Tensor) -> Tensor:
        """The values on a device that the group's backend can send from."""
        devices = {entry.partition(":")[0] for entry in dist.get_backend_config(self.group).split(",")}
        if values.device.type in devices:
            return values
        return values.cuda() if "cuda" in devices else values.cpu()


Ranks.ALONE = Ranks()
