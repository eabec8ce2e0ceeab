"""Parts of a set: for validation, limited, folded; stratified by class and decided by a seed alone.

Every choice (an epoch, a weight, a stopping time) is made on a validation set taken from the training set, never on the
test set.
"""

import torch
from torch import Tensor

from sfumato.data.imageset import ImageSet
from sfumato.errors import ConfigError, DataError
from sfumato.seeds import generator
from sfumato.settings import check_type

__all__ = ["folds", "hold_out", "limit"]


def hold_out(data: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split into (fit, held_out), `held_out` with round(fraction N) images, at least one.

    Each class is held out in proportion to its size (largest remainders), but never its last image: what is learned
    from shows every class. Both parts keep the order of `data`.

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
        DataError: no class has a second image.

    >>> from sfumato import data
    >>> fit, held_out = hold_out(data.load("digits").train, 0.1, seed=0)
    >>> len(fit), len(held_out)
    (1294, 144)
    """
    check_type("fraction", fraction, float)
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}; give a fraction between 0 and 1, such as 0.1")
    order, counts = _shuffled_classes(data, seed, "hold_out")
    room = (counts - 1).clamp(min=0)
    if int(room.sum()) == 0:
        raise DataError(
            f"{len(data)} images with one per class are too few to hold any out; use more images, or hold nothing out"
        )
    total = max(1, round(fraction * len(data)))
    quota = _proportional(counts, room, total)
    held = torch.zeros(len(data), dtype=torch.bool)
    held[_first_of_each(order, counts, quota)] = True
    return data.subset(~held), data.subset(held)


def limit(data: ImageSet, n: int, seed: int) -> ImageSet:
    """A subset of n images (all, if there are fewer), with as equal numbers per class as the classes allow.

    For one seed a smaller subset is part of every larger one. The order of `data` is kept.

    Raises:
        ConfigError: n is below 1.
    """
    check_type("the limit", n, int)
    if n < 1:
        raise ConfigError(f"the limit is {n}; give the number of images to keep, at least 1")
    if n >= len(data):
        return data
    order, counts = _shuffled_classes(data, seed, "limit")
    level = torch.minimum(counts, torch.tensor(_water_level(counts, n)))
    # One more from each of the first few classes, in random order, that still have some.
    more = [
        c
        for c in torch.randperm(len(counts), generator=generator(seed, "limit", "rest")).tolist()
        if counts[c] > level[c]
    ]
    level[more[: n - int(level.sum())]] += 1
    return data.subset(_first_of_each(order, counts, level).sort().values)


def folds(data: ImageSet, k: int, seed: int) -> list[tuple[ImageSet, ImageSet]]:
    """k pairs (fit, test) whose test parts are disjoint and together are `data` (stratified cross-validation).

    The sizes of the test parts, and of each class in them, differ by at most one. The order of `data` is kept.

    Raises:
        ConfigError: k is below 2 or above the number of images.
    """
    check_type("k", k, int)
    if not 2 <= k <= len(data):
        raise ConfigError(f"{k} folds of {len(data)} images are impossible; give 2 .. {len(data)} folds")
    order, _ = _shuffled_classes(data, seed, "folds")
    fold = torch.empty(len(data), dtype=torch.int64)
    fold[order] = torch.arange(len(data)) % k  # dealt out like cards, class after class
    return [(data.subset(fold != j), data.subset(fold == j)) for j in range(k)]


def _shuffled_classes(data: ImageSet, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Positions sorted by class, in random order within each class; images per class, (num_classes,)."""
    labels = data.labels.cpu()
    order = torch.randperm(len(data), generator=generator(seed, purpose))
    order = order[labels[order].argsort(stable=True)]
    return order, labels.bincount(minlength=data.num_classes)


def _first_of_each(order: Tensor, counts: Tensor, quota: Tensor) -> Tensor:
    """The first quota[c] positions of each class c in `order`."""
    starts = counts.cumsum(0) - counts
    parts = [order[s : s + q] for s, q in zip(starts.tolist(), quota.tolist(), strict=True)]
    return torch.cat(parts)


def _proportional(counts: Tensor, room: Tensor, total: int) -> Tensor:
    """About total * counts / sum(counts) of each class, at most `room`, together min(total, sum(room))."""
    exact = counts.double() * total / int(counts.sum())
    quota = torch.minimum(exact.floor().long(), room)
    while (missing := min(total, int(room.sum())) - int(quota.sum())) > 0:
        lack = (exact - quota).masked_fill(quota >= room, -torch.inf)
        best = lack.argsort(descending=True, stable=True)[:missing]
        quota[best[quota[best] < room[best]]] += 1
    return quota


def _water_level(counts: Tensor, n: int) -> int:
    """The largest level l with sum(min(counts, l)) <= n."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if int(counts.clamp(max=middle).sum()) <= n:
            low = middle
        else:
            high = middle - 1
    return low
