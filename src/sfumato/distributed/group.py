"""Which part each rank works on, and what the ranks tell each other; one process alone is a group of one."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch.distributed as dist

from sfumato.distributed.collectives import Collectives, collective
from sfumato.errors import ConfigError, SfumatoError

__all__ = ["Part", "Ranks"]

T = TypeVar("T")
_apart: ContextVar[bool] = ContextVar("sfumato_ranks_apart", default=False)


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

    def working(self) -> AbstractContextManager[None]:
        """Inside, `Ranks.current()` is this process alone where `apart` says so."""
        return _working_apart() if self.apart else nullcontext()


@contextmanager
def _working_apart() -> Iterator[None]:
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


class Ranks(Collectives):
    """The processes that work together: who does which part, and what they agree on. See `Collectives` for sums."""

    ALONE: ClassVar["Ranks"]

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
            SfumatoError: the first rank's that had one, of the same class.
        """
        problem: SfumatoError | None = None
        try:
            yield
        except SfumatoError as error:
            problem = error
        self.agree(problem)

    def agree(self, problem: SfumatoError | None) -> None:
        """Raise on all ranks what any of them brings."""
        problems = self.objects(problem)
        if problem is not None:
            raise problem
        for other in problems:
            if other is not None:
                raise other

    def check_same(self, values: dict[str, Any], advice: str) -> None:
        """Refuse to go on where the ranks have different values under a name.

        Raises:
            ConfigError: they differ.
        """
        told = self.objects(values)
        for rank, theirs in enumerate(told):
            if changed := [name for name in theirs if theirs[name] != told[0].get(name)]:
                raise ConfigError(f"rank {rank} has another {' and another '.join(changed)} than rank 0; {advice}")


Ranks.ALONE = Ranks()
