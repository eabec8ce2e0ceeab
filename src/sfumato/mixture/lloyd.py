"""Lloyd's iterations of many classes side by side: what a GPU does instead of one class after the other."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.mixture.kmeans import TOLERANCE
from sfumato.ranks import Ranks

__all__ = ["lloyd_by_class"]

# Numbers in the padded copy of the features of one group of classes.
_ELEMENTS = 1 << 28


@torch.no_grad()
def lloyd_by_class(
    features: Tensor, order: Tensor, counts: Tensor, centres: Tensor, iterations: int, ranks: Ranks = Ranks.ALONE
) -> tuple[Tensor, Tensor]:
    """Move the centres of every class as `kmeans` would inside that class, all classes in the same products.

    The samples of a class are padded to the largest class of its group. A class stops, like in `kmeans`, when no sample
    changes its cluster or its centres hardly move; nothing waits for the device until the end. `kmeans` restarts a
    cluster that runs empty, which this does not: such classes are named, so that the caller hands them to `kmeans`.

    Args:
        features: (n, D).
        order: (n,) indices that sort the samples by class.
        counts: (C,) int64, samples of each class; on the CPU.
        centres: (C, m, D) to start from.
        iterations: at most so many updates.
        ranks: processes that hold a part of the samples each.

    Returns:
        (C, m, D) centres, and (C,) bool: classes in which a cluster ran empty; their centres are those of the start.
    """
    result = centres.clone()
    ran_empty = torch.zeros(len(centres), dtype=torch.bool, device=features.device)
    starts = counts.cumsum(0) - counts
    for group in _groups(ranks.sum(counts), features.shape[1]):  # the same on all ranks
        sizes = counts[group]
        slots = torch.arange(int(sizes.max()))
        valid = slots < sizes[:, None]
        index = torch.where(valid, starts[group][:, None] + slots, 0)
        rows = features[order[index.to(order.device)]]
        moved, empty = _iterate(rows, valid.to(features.device), result[group], iterations, ranks)
        result[group] = torch.where(empty[:, None, None], result[group], moved)
        ran_empty[group] = empty
    return result, ran_empty


def _groups(counts: Tensor, dim: int) -> Iterator[slice]:
    """Neighbouring classes whose padded samples fit the memory set aside; classes without samples do no harm."""
    sizes: list[int] = counts.tolist()
    start = 0
    while start < len(sizes):
        end, widest = start, 1
        while end < len(sizes):
            widest = max(widest, sizes[end])
            if end > start and (end + 1 - start) * widest * dim > _ELEMENTS:
                break
            end += 1
        yield slice(start, end)
        start = end


def _iterate(rows: Tensor, valid: Tensor, centres: Tensor, iterations: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """(C, n, D) samples, (C, n) which of them are real, (C, m, D) centres -> moved centres, classes that ran empty."""
    weight = valid.to(rows.dtype)
    total = ranks.sum(weight.sum(1))
    active = total > 0
    total = total.clamp(min=1)
    shift = ranks.sum((rows * weight[:, :, None]).sum(1, keepdim=True)) / total[:, None, None]
    rows = (rows - shift) * weight[:, :, None]
    enough = TOLERANCE * ranks.sum(rows.square().sum((1, 2))) / (total * rows.shape[2])
    moved = centres - shift
    m = centres.shape[1]
    empty = torch.zeros_like(active)
    before: Tensor | None = None
    for _ in range(iterations):
        score = torch.baddbmm(0.5 * moved.square().sum(2)[:, None, :], rows, moved.mT, alpha=-1.0)
        chosen = score.argmin(2)
        if before is not None:
            active = active & (ranks.sum(((chosen != before) & valid).sum(1)) > 0)
        before = chosen
        member = torch.nn.functional.one_hot(chosen, m).to(rows.dtype) * weight[:, :, None]
        size = ranks.sum(member.sum(1))
        fresh = ranks.sum(torch.bmm(member.mT, rows)) / size.clamp(min=1)[:, :, None]
        empty = empty | (active & (size == 0).any(1))
        distance = (fresh - moved).square().sum((1, 2))
        moved = torch.where(active[:, None, None], fresh, moved)
        active = active & (distance > enough)
    return moved + shift, empty
