"""All rows of a batch that is spread over ranks, for losses that are no mean over single rows."""

from typing import Any

import torch
from torch import Tensor

from sfumato.distributed.group import Ranks

__all__ = ["whole"]


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
        gathered = ranks.gather(rows)
        start = ranks.before(len(rows))
        ctx.own, ctx.factor = slice(start, start + len(rows)), len(gathered) / max(1, len(rows))
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own] * ctx.factor, None
