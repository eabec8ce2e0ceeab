"""Fitting mixtures: the refresh of CEM, its memory, and EM against scikit-learn."""

import importlib.util
import statistics
import time

import torch
from torch import Tensor

from sfumato.bench.timing import Ratio
from sfumato.cem import CEM
from sfumato.errors import ConfigError
from sfumato.mixture import GaussianMixture, Parameters

__all__ = ["clustered", "em_against_scikit_learn", "refresh", "require_scikit_learn"]

_CLASSES, _PER_CLASS = 10, 3


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


def em_against_scikit_learn(count: int = 50_000, dim: int = 512, k: int = 30) -> Ratio:
    """A diagonal EM fit to the same likelihood, both from the same start and with the same tolerance."""
    from sklearn.mixture import GaussianMixture as Reference

    features, _ = clustered(count, dim)
    start = _start(features, k)
    began = time.perf_counter()
    ours = GaussianMixture(k, covariance="diagonal", tol=1e-3, max_iter=100).fit(features, init=start)
    own = time.perf_counter() - began
    theirs = Reference(
        k,
        covariance_type="diag",
        tol=1e-3,
        max_iter=100,
        weights_init=start.weights.double().numpy(),
        means_init=start.means.double().numpy(),
        precisions_init=1 / start.covariances.double().numpy(),
    )
    began = time.perf_counter()
    theirs.fit(features.numpy())
    other = time.perf_counter() - began
    gap = float(ours.score(features)) - float(theirs.score(features.numpy()))
    return Ratio(
        f"diagonal EM, {k} components, {count:,} x {dim}: speed",
        other / own,
        "scikit-learn's GaussianMixture from the same start",
        5.0,
        "at least",
        f"{own:.2f} s and {ours.n_iter_} iterations against {other:.2f} s and {theirs.n_iter_}; "
        f"log-likelihood per sample {gap:+.4f}",
    )


def _start(features: Tensor, k: int) -> Parameters:
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(features), generator=generator)[:k]
    variances = features.var(0).expand(k, -1).clone()
    return Parameters(torch.full((k,), 1 / k, dtype=torch.float64), features[chosen].double(), variances.double())
