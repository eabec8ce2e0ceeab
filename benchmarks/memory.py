"""Peak memory of a refresh, over that of the features themselves; needs Linux."""

import multiprocessing
from pathlib import Path

import torch

from sfumato.bench.timing import Ratio
from sfumato.bench.training import clustered
from sfumato.cem import CEM

__all__ = ["refresh_memory"]

_CLASSES = 10


def refresh_memory(count: int = 50_000, dim: int = 512) -> Ratio:
    """Peak memory of a first and a warm refresh, features included, over the features' own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        ratio = pool.apply(_peak, (count, dim))
    return Ratio(
        "peak memory of a refresh",
        ratio,
        f"the {count * dim * 4 / 2**20:.0f} MiB of features themselves",
        2.5,
    )


def _peak(count: int, dim: int) -> float:
    small, small_labels = clustered(1000, dim)
    for _ in range(2):  # libraries allocate their own buffers on first use
        CEM(num_classes=_CLASSES, noise_std=0.025).refresh(small, small_labels)
    before = _memory("VmRSS")
    features = torch.empty(count, dim)
    chunk = 1000
    for start in range(0, count, chunk):
        features[start : start + chunk] = small[: min(chunk, count - start)] + 0.001 * (start / count)
    labels = small_labels.repeat(count // chunk + 1)[:count]
    cem = CEM(num_classes=_CLASSES, noise_std=0.025)
    cem.refresh(features, labels)
    cem.refresh(features, labels)
    return (_memory("VmHWM") - before) / (count * dim * 4)


def _memory(field: str) -> int:
    """Bytes from /proc/self/status; `getrusage` would give a child the peak of a larger parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}; this benchmark needs Linux")
