"""Checks and small helpers shared by the room, each in one place."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError

# Temporaries of a pass hold about this many numbers: on a CPU they stay in the cache, on a GPU they fill the device.
_CPU_ELEMENTS = 1 << 20
_GPU_ELEMENTS = 1 << 24


def check_features(features: Tensor, dim: int | None = None) -> None:
    """FeatureError unless `features` is a float32 or float64 matrix (n, D), with D = `dim` where that is given."""
    if features.ndim != 2 or features.dtype not in (torch.float32, torch.float64):
        raise FeatureError(
            f"features must be float32 or float64 of shape (n, D), got {features.dtype} {tuple(features.shape)}; "
            "convert them with features.flatten(1).float()"
        )
    if dim is not None and features.shape[1] != dim:
        raise FeatureError(
            f"features have {features.shape[1]} dimensions, but the clusters {dim}; fit again for these features"
        )


def check_finite(features: Tensor) -> None:
    """FeatureError when there are no features, or one holds NaN or infinity."""
    if features.numel() == 0:
        raise FeatureError(f"there is nothing to fit in features of shape {tuple(features.shape)}; pass samples")
    low, high = features.aminmax()  # needs no temporary of the size of the features, as isfinite would
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise FeatureError("features hold NaN or infinite values; find the step that produced them first")


def _check_index(name: str, index: Tensor, count: int, limit: int, what: str, plural: str, values: bool) -> None:
    if index.ndim != 1 or len(index) != count or index.dtype != torch.int64:
        raise FeatureError(
            f"{name} must be int64 of shape ({count},) like the features, got {index.dtype} {tuple(index.shape)}; "
            f"pass one {what} index per sample"
        )
    if values and count and bool(((index < 0) | (index >= limit)).any()):
        raise FeatureError(
            f"{name} reach from {int(index.min())} to {int(index.max())}, outside 0 to {limit - 1}; "
            f"check the number of {plural}"
        )


def check_assignment(assignment: Tensor, count: int, clusters: int) -> None:
    """FeatureError unless `assignment` is (count,) int64 in [0, clusters)."""
    _check_index("assignments", assignment, count, clusters, "cluster", "clusters", True)


def check_labels(labels: Tensor | None, count: int, num_classes: int, *, values: bool = True) -> Tensor:
    """The labels; FeatureError unless they are (count,) int64 in [0, num_classes).

    Looking at the `values` of a tensor on a GPU waits for it; a training step leaves that to the refresh.
    """
    if labels is None:
        raise FeatureError("these clusters belong to classes; pass labels, or fit them without labels")
    _check_index("labels", labels, count, num_classes, "class", "classes", values)
    return labels


def check_positive(**settings: int) -> None:
    """ConfigError naming the first setting below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; give at least 1")


def chunk_rows(width: int, device: torch.device) -> int:
    """How many rows of `width` numbers one step of a chunked pass takes."""
    elements = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
    return max(1, elements // max(1, width))


def chunk_slices(features: Tensor, *, cached: bool = False) -> Iterator[slice]:
    """The rows of `features` in chunks, `cached` ones where a CPU reads each twice.

    Fill a result allocated before: a list of pieces fragments the heap.
    """
    step = chunk_rows(features.shape[1] * (2 if cached else 1), features.device)
    return (slice(start, start + step) for start in range(0, len(features), step))


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """The generator itself, or a new one seeded with 0: never the global state."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def random_unit(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """(count,) float64 uniform in [0, 1), drawn where the generator lives and moved to the device of `like`."""
    drawn = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(like.device)


def sorted_clusters(assignment: Tensor, clusters: int) -> tuple[Tensor, Tensor, list[int]]:
    """`(order, counts, ends)`: the samples of cluster j are `order[ends[j] - counts[j] : ends[j]]`, in their order."""
    counts = torch.bincount(assignment, minlength=clusters)
    return assignment.argsort(stable=True), counts, counts.cumsum(0).tolist()
