"""Fitting mixtures: the refresh of CEM, and k-means against scikit-learn."""

import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.bench.timing import Ratio
from sfumato.cem import CEM
from sfumato.errors import ConfigError
from sfumato.mixture import kmeans

__all__ = ["clustered", "kmeans_against_scikit_learn", "refresh", "require_scikit_learn"]

_CLASSES, _PER_CLASS = 10, 3
_ITERATIONS = 10


def clustered(count: int, dim: int, seed: int = 0, classes: int = _CLASSES) -> tuple[Tensor, Tensor]:
    """Features in [0, 1] around three centres per class with correlated spread, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    component = torch.randint(0, classes * _PER_CLASS, (count,), generator=generator)
    centres = 0.3 + 0.4 * torch.rand(classes * _PER_CLASS, dim, generator=generator)
    mix = torch.randn(32, dim, generator=generator) * 0.02
    features = torch.randn(count, 32, generator=generator) @ mix
    features += torch.randn(count, dim, generator=generator).mul_(0.05)
    features += centres[component]
    return features, component // _PER_CLASS


def refresh(rounds: int, step_seconds: float, count: int = 50_000, dim: int = 512) -> Ratio:
    """A warm refresh from given features over the time of the epoch that it serves."""
    features, labels = clustered(count, dim)
    cem = CEM(num_classes=_CLASSES, clusters_per_class=_PER_CLASS, noise_std=0.025)
    cem.refresh(features, labels)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        cem.refresh(features, labels)
        seconds.append(time.perf_counter() - began)
    epoch = step_seconds * count / 128
    taken = statistics.median(seconds)
    return Ratio(
        f"warm refresh, {count:,} x {dim}, class-conditional, full",
        taken / epoch,
        "an epoch of training steps",
        0.02,
        detail=f"{taken:.2f} s against {epoch:.0f} s (steps x {count / 128:.0f})",
    )


def require_scikit_learn() -> None:
    """Say before the long work that its last part would fail.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("the benchmark compares with scikit-learn; run `pip install 'sfumato[bench]'`")


def kmeans_against_scikit_learn(rounds: int, count: int, dim: int, k: int) -> Ratio:
    """Lloyd's iterations from the same start, equally many, on one thread; the processor's time, best of the rounds."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    features, _ = clustered(count, dim)
    start = features[torch.randperm(count, generator=torch.Generator().manual_seed(1))[:k]].clone()
    reference = KMeans(k, init=start.numpy(), n_init=1, max_iter=_ITERATIONS, tol=0.0, algorithm="lloyd")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            ours, theirs = (
                min(_processor_seconds(fit) for _ in range(rounds))
                for fit in (
                    lambda: kmeans(features, k, init=start, iterations=_ITERATIONS),
                    lambda: reference.fit(features.numpy()),
                )
            )
    finally:
        torch.set_num_threads(threads)
    return Ratio(
        f"k-means, {count:,} x {dim}, k = {k}",
        ours / theirs,
        "scikit-learn's Lloyd from the same start, one thread",
        1.0,
        detail=f"{1e3 * ours:.0f} ms against {1e3 * theirs:.0f} ms, {_ITERATIONS} iterations",
    )


def _processor_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
