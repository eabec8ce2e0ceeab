"""Held-out information: how much a released feature tells about the clean one, at most, without bias.

Everything is computed in units of the noise, where the channel is z = f + e with e ~ N(0, I).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture.densities import CANDIDATES, QUICK, Density, Places
from sfumato.mixture.kmeans import kmeans
from sfumato.noise import Noise
from sfumato.seeds import derive_seed, generator

__all__ = ["HeldOutInformation", "held_out_information"]

_FEWEST = 4  # samples: two folds to fit on, one to choose by, one to judge
_FOLDS, _FEWER_FOLDS, _QUICK_FOLDS = 10, 5, 4
_TEN_FOLDS_UP_TO = 500  # samples: with more the last tenth teaches little
_GIVEN_AXES_UP_TO = 1 << 24  # samples times dimensions, beyond which their own axes take gigabytes
_GIVEN_AXES_BY_CLASS = 4e9  # that times classes, beyond which they take minutes
_CLUSTERS = (1, 8)  # tried where there are no labels, with at least _PER_CLUSTER samples in each
_PER_CLUSTER = 10
_PER_CLASS = 4  # samples on average, below which no class has a covariance of its own
_SPREAD_EVENLY = 0.01  # of the mixing weights, so that no candidate, and never the guard, is left out by chance


@dataclass(frozen=True)
class HeldOutInformation:
    """An upper bound on I(z; z_hat), measured.

    Attributes:
        value: the unbiased estimate, in nats; by chance it may lie slightly below 0.
        standard_error: its standard error over features, in nats.

    >>> print(f"{HeldOutInformation(1.5, 0.1).at_most:.1f}")
    1.8
    """

    value: float
    standard_error: float

    @property
    def at_most(self) -> float:
        """`value` and 3 standard errors, at least 0: what a certificate is computed from."""
        return max(0.0, self.value + 3 * self.standard_error)


def held_out_information(
    features: Tensor, labels: Tensor | None, noise_std: float | Noise = 0.1, seed: int = 0, *, quick: bool = False
) -> HeldOutInformation:
    r"""Unbiased upper bound on the information that crosses the wire, `I(z; z_hat)`, from samples.

        I(z; z_hat) = h(z) - h(eps) <= -E log q(z) - 1/2 log |2 pi e Sigma_p|        for every density q

    with z = z_hat + eps, eps ~ N(0, Sigma_p), Sigma_p = sigma^2 I unless a `sfumato.Noise` says otherwise. The
    difference of the two sides is KL(p_z || q) >= 0, so a poor q makes the bound loose and never wrong, provided that q
    does not know the features it is averaged over. Hence cross-fitting: the samples are cut into K folds; q is fitted
    on the others of each fold, part of which chooses its form, and averaged over noisy features of the fold. The value
    is the mean over all features, each of which is judged by a q that has not seen it.

    q is a mixture of Gaussian mixtures, one component for each class, and its own parameters are predictive ones:
    class means are pulled to the common mean and carry their uncertainty; covariances are `sigma^2 I` plus a scale of
    the class times a common within-class covariance (shrunk by Ledoit and Wolf's rule), mixed with the class's own
    covariance, diagonal (in the axes of the features, or in the principal ones) or full, at several strengths
    and scales. A Student density takes care of outliers. The weights of all these are the maximum
    likelihood on the choosing folds (Smyth and Wolpert, Linearly combining density estimators via stacking, 1999).

    The bound is loose by what q cannot learn from so few samples: D/2 log(1 + 1/n_j) nats for means alone where the
    signal is far above the noise, and more for covariances that differ between classes in every direction.

    Assumption: the features are independent samples of the distribution that the statement is about, which the
    encoder's training images are not where it has overfitted: pass features of images that it did not learn from.

    Args:
        features: z_hat (N, ...), clean features before the noise, N >= 4, flattened row-major to D dimensions.
        labels: (N,) integers that tell clusters apart, of any values; None tries one cluster and 8 by k-means.
            They shape q only: wrong ones make the bound looser.
        noise_std: sigma > 0, the standard deviation of the noise on every coordinate, or a `sfumato.Noise`.
        seed: of the folds and of the noise.
        quick: four folds, fewer forms of q and draws of the noise: a bound as valid, looser by a few per cent, in a
            tenth of the time, to follow a training with.

    Returns:
        Value and standard error in nats. The error is that of a mean over N features (each with 4 draws of the noise)
        and covers the choice of features, not what q has left.

    Raises:
        ConfigError: the noise is not positive in every direction: without noise the information is infinite.
        FeatureError: fewer than 4 features, NaN or infinity, or labels of another shape.

    Works in float64 with memory for a few copies of the features and min(N, D)^2 numbers. Where D > N, principal axes
    are those of the span of the features; the features' own axes are tried while N D < 2^24 and N D k < 4e9. There are
    ten folds up to 500 features and five beyond. Classes of fewer than 4 features on average share one covariance.

    Source: Barber and Agakov, The IM algorithm, 2003, and Poole et al., On variational bounds of mutual information,
    2019, for the bound; the tail of the mixture as in defensive importance sampling (Hesterberg 1995).

    Example:
        >>> import torch, sfumato
        >>> z_hat = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> found = sfumato.held_out_information(z_hat, None, noise_std=0.5)
        >>> print(f"{found.value:.1f}, and {math.log(1 + 1 / 0.25):.1f} is exact")
        1.6, and 1.6 is exact
    """
    samples, owner = _checked(features, labels, noise_std)
    n, dim = samples.shape
    k = int(owner.max()) + 1
    source = generator(seed, "held-out-information")
    count = min(n, _QUICK_FOLDS if quick else _FOLDS if n <= _TEN_FOLDS_UP_TO else _FEWER_FOLDS)
    fold = _folds(owner, count, source)
    forms = QUICK if quick else CANDIDATES
    if n < _PER_CLASS * k:
        forms = tuple(form for form in forms if form.own == "none")
    given = n * dim <= _GIVEN_AXES_UP_TO and n * dim * k <= _GIVEN_AXES_BY_CLASS
    if not given:
        forms = tuple(form for form in forms if form.axes != "given")
    places = Places(samples, 1 if quick else 2, source, given=given)

    # One list for every fit, also the smallest, so that weights chosen on some are weights of the others.
    clusters = [most for most in _CLUSTERS if most == 1 or most * _PER_CLUSTER <= n - 2 * math.ceil(n / count)]

    def fit(rows: Tensor) -> Density:
        partitions = [(owner[rows], k)] if labels is not None else _clusterings(places.span[rows], clusters, seed)
        return Density(places, rows, partitions, forms)

    # Each pair of neighbouring folds is left out once: what is fitted then judges the candidates on both of them.
    chosen: list[list[Tensor]] = [[] for _ in range(count)]
    for first in range(count):
        second = (first + 1) % count
        density = fit((fold != first) & (fold != second))
        for judged, chooses in ((first, second), (second, first)):
            chosen[judged].append(density.log_each(fold == chooses, draws=places.choosing))
    each = samples.new_empty(n)
    for judged in range(count):
        weights = _stacked(torch.cat(chosen[judged]))
        density, rows = fit(fold != judged), fold == judged
        each[rows] = -(density.log(rows, weights) + density.control(rows)).mean(0)
    each -= dim / 2 * math.log(2 * math.pi * math.e)
    return HeldOutInformation(float(each.mean()), float(each.std()) / math.sqrt(n))


def _clusterings(rows: Tensor, wanted: Sequence[int], seed: int) -> list[tuple[Tensor, int]]:
    """`(owner, k)` by k-means at several k."""
    source = torch.Generator().manual_seed(derive_seed(seed, "held-out-clusters"))
    return [(kmeans(rows, k, iterations=10, generator=source).assignment, k) for k in wanted]


def _folds(owner: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Each sample's fold (N,), with the samples of a class spread evenly over the folds."""
    shuffled = torch.randperm(len(owner), generator=source).to(owner.device)
    by_class = shuffled[owner[shuffled].argsort(stable=True)]
    fold = torch.empty_like(by_class)
    fold[by_class] = torch.arange(len(owner), device=owner.device) % count
    return fold


def _stacked(log: Tensor) -> Tensor:
    """Weights (C,) of densities whose mixture is likeliest, from log-densities (n, C); by EM, which is convex here."""
    likelihood = (log - log.amax(1, keepdim=True)).exp()
    weights = log.new_full((log.shape[1],), 1 / log.shape[1])
    for _ in range(100):
        weights = weights * ((1 / (likelihood @ weights)) @ likelihood) / len(likelihood)
    return (1 - _SPREAD_EVENLY) * weights + _SPREAD_EVENLY / len(weights)


def _checked(features: Tensor, labels: Tensor | None, noise_std: float | Noise) -> tuple[Tensor, Tensor]:
    """Features (N, D) in float64 and in units of the noise, and their classes, numbered from 0."""
    shaped = isinstance(noise_std, Noise)
    if not shaped and not (isinstance(noise_std, int | float) and noise_std > 0 and math.isfinite(noise_std)):
        raise ConfigError(
            f"noise_std is {noise_std!r}: without noise the information is infinite; pass the standard deviation of "
            "the channel's noise, above 0"
        )
    if not isinstance(features, Tensor) or features.ndim < 2 or len(features) < _FEWEST or features[0].numel() == 0:
        shape = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise FeatureError(f"features are {shape}; pass a tensor (N, ...) of at least {_FEWEST} clean features")
    samples = Noise.of(noise_std).whiten(features.detach().double())
    if not bool(samples.isfinite().all()):
        raise FeatureError("features hold NaN or infinite values; find the step that produced them first")
    if labels is None:
        return samples, torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    if labels.shape != (len(samples),) or labels.is_floating_point():
        raise FeatureError(
            f"labels are {labels.dtype} {tuple(labels.shape)} for {len(samples)} features; pass one integer for each, "
            "or None"
        )
    return samples, labels.to(samples.device).unique(return_inverse=True)[1]
