"""Held-out information: how much a released feature tells about the clean one, at most, without bias.

Everything is computed in units of the noise, where the channel is z = f + e with e ~ N(0, I). A noise covariance in
place of one standard deviation would change the one line that divides by it, and nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import kmeans
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
_ELEMENTS = 1 << 23  # of temporaries at once: 64 MiB
_SPREAD_EVENLY = 0.01  # of the mixing weights, so that no candidate, and never the guard, is left out by chance
_LEAST_WEIGHT = 1e-3  # of a candidate that is worth its time on the judging fold
_FREEDOM = 3.0  # degrees of freedom of the guard
_TINY = 1e-12


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
    features: Tensor, labels: Tensor | None, noise_std: float = 0.1, seed: int = 0, *, quick: bool = False
) -> HeldOutInformation:
    r"""Unbiased upper bound on the information that crosses the wire, `I(z; z_hat)`, from samples.

        I(z; z_hat) = h(z) - h(eps) <= -E log q(z) - D/2 log(2 pi e sigma^2)        for every density q

    with z = z_hat + eps, eps ~ N(0, sigma^2 I). The difference of the two sides is KL(p_z || q) >= 0, so a poor q makes
    the bound loose and never wrong, provided that q does not know the features it is averaged over. Hence
    cross-fitting: the samples are cut into K folds; q is fitted on the others of each fold, part of which chooses its
    form, and averaged over noisy features of the fold. The value is the mean over all features, each of which is
    judged by a q that has not seen it.

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
        noise_std: sigma > 0, the standard deviation of the noise on every coordinate.
        seed: of the folds and of the noise.
        quick: four folds, fewer forms of q and draws of the noise: a bound as valid, looser by a few per cent, in a
            tenth of the time, to follow a training with.

    Returns:
        Value and standard error in nats. The error is that of a mean over N features (each with 4 draws of the noise)
        and covers the choice of features, not what q has left.

    Raises:
        ConfigError: the noise is not positive: without noise the information is infinite.
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
    forms = _QUICK if quick else _CANDIDATES
    if n < _PER_CLASS * k:
        forms = tuple(form for form in forms if form.own == "none")
    given = n * dim <= _GIVEN_AXES_UP_TO and n * dim * k <= _GIVEN_AXES_BY_CLASS
    if not given:
        forms = tuple(form for form in forms if form.axes != "given")
    places = _Places(samples, 1 if quick else 2, source, given=given)

    def fit(rows: Tensor) -> _Density:
        partitions = [(owner[rows], k)] if labels is not None else _clusterings(places.span[rows], seed)
        return _Density(places, rows, partitions, forms)

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


class _Candidate(NamedTuple):
    """A form of the classes' covariances: `strength` is the common one's weight in samples."""

    axes: Literal["given", "pooled"]
    own: Literal["none", "diagonal", "full"]
    strength: float
    scale: float


_AXES: tuple[Literal["given", "pooled"], ...] = ("given", "pooled")
_CANDIDATES = (
    *(_Candidate(axes, "none", math.inf, scale) for axes in _AXES for scale in (0.7, 1.4)),
    *(
        _Candidate(axes, "diagonal", strength, scale)
        for axes in _AXES
        for strength in (3.0, 24.0)
        for scale in (0.8, 1.4)
    ),
    *(_Candidate("pooled", "full", strength, scale) for strength in (0.5, 3.0, 16.0, 80.0) for scale in (0.8, 1.6)),
)


_QUICK = tuple(
    form
    for form in _CANDIDATES
    if (form.own == "none" and form.axes == "pooled")
    or (form.own == "diagonal" and form.strength == 3)
    or (form.own == "full" and form.strength in (3, 16) and form.scale > 1)
)


class _Places:
    """All features and opposite draws of the noise, in their own axes and, where D > N, in the span of the features.

    Attributes:
        given: (N, D) around the common mean, in units of the noise; noise: (draws, N, D). Empty where the features' own
            axes are not asked for.
        span: (N, r), r = min(N, D); span_noise: (draws, N, r); outside: (draws, N), the squared length of the noise
            beyond the span, which has `spare` = D - r dimensions and none of the features.
        choosing: how many draws choose; the first of them.
    """

    def __init__(self, samples: Tensor, pairs: int, source: torch.Generator, *, given: bool) -> None:
        n, dim = samples.shape
        self.dim, self.spare, self.choosing = dim, max(0, dim - n), pairs
        centred = samples - samples.mean(0)
        # Opposite draws: what is linear in the noise cancels.
        signs = samples.new_tensor([1.0] * pairs + [-1.0] * pairs)[:, None, None]
        width = dim if given or not self.spare else n
        noise = torch.randn(pairs, n, width, generator=source, dtype=torch.float64).to(samples).repeat(2, 1, 1) * signs
        self.given, self.noise = (centred, noise) if given else (centred[:, :0], noise[..., :0])
        self.span, self.span_noise = centred, noise
        self.outside = noise.new_zeros(noise.shape[:2])
        if self.spare and given:
            basis = torch.linalg.qr(centred.T)[0]
            self.span, self.span_noise = centred @ basis, noise @ basis
            self.outside = (noise.square().sum(-1) - self.span_noise.square().sum(-1)).clamp(min=0)
        elif self.spare:  # the same without a basis: coordinates from inner products, and lengths by their distribution
            values, vectors = torch.linalg.eigh(centred @ centred.T)
            self.span = vectors * values.clamp(min=0).sqrt()
            lengths = np.random.default_rng(source.initial_seed()).chisquare(self.spare, (pairs, n))
            self.outside = torch.from_numpy(lengths).to(samples).repeat(2, 1)


class _Classes:
    """Class statistics of training rows in axes that (nearly) diagonalise the common covariance.

    The last column of every (k, r + 1) array stands for the `spare` dimensions without training rows together.
    """

    def __init__(self, rows: Tensor, owner: Tensor, k: int, common: Tensor, spare: int) -> None:
        n, r = rows.shape
        counts = torch.bincount(owner, minlength=k)
        filled = counts > 0
        self.common, self.owner, self.counts = common, owner, counts
        self.copies = torch.cat([rows.new_ones(r), rows.new_tensor([float(spare)])])
        self.log_weights = ((counts + 0.5) / (n + 0.5 * k)).log()
        means = rows.new_zeros(k, r).index_add_(0, owner, rows) / counts.clamp(min=1)[:, None]
        self.residuals = rows - means[owner]
        self.squares = _padded(rows.new_zeros(k, r).index_add_(0, owner, self.residuals.square()))
        self.freedom = (counts - 1).clamp(min=0).to(rows)[:, None]
        # How much larger a class is than the common covariance: from all axes, by what each of them can say.
        say = (common / (1 + common)).square()
        ratio = self.squares @ (say / say.sum().clamp(min=_TINY) / common.clamp(min=_TINY))
        self.scale = (ratio[:, None] + 2) / (self.freedom + 2)
        # Axis by axis, means are pulled to the common one as far as chance explains how they differ.
        sampling = self.scale * common / counts.clamp(min=1)[:, None]
        means = _padded(means)
        between = (means[filled].square() - sampling[filled]).mean(0).clamp(min=0)
        keep = torch.where(filled[:, None], between / (between + sampling).clamp(min=_TINY), 0.0)
        self.means = keep * means
        self.doubt = torch.where(filled[:, None], keep * sampling, between)
        self.total = 1 + common + between

    def log(self, z: Tensor, squares: Tensor, form: _Candidate) -> Tensor:
        """log q (n,) of noisy rows z (n, r), `squares` (n, r + 1) being theirs, for one form of the covariances."""
        share = 1.0 if form.own == "none" else form.strength / (self.freedom + form.strength)
        spread = share * self.scale * self.common
        if form.own == "diagonal":
            spread = spread + self.squares / (self.freedom + form.strength)
        variances = 1 + form.scale * spread + self.doubt
        inverse = 1 / variances
        moved = (self.means * inverse)[:, :-1]
        distance = squares @ inverse.T - 2 * z @ moved.T + (self.means.square() * inverse).sum(1)
        determinant = variances.log() @ self.copies
        for part, roots in self.roots if form.own == "full" else ():
            # With V the variances and A^T A the class's share of its own scatter:
            # log|V + A^T A| = log|V| + log|I + A V^-1 A^T|, and likewise for the inverse.
            strength = (form.scale / (self.freedom[part] + form.strength)).sqrt()[..., None]
            root = inverse[part, None, :-1].sqrt()
            scaled = strength * roots * root
            gram = scaled @ scaled.mT
            gram.diagonal(dim1=-2, dim2=-1).add_(1)
            lower = torch.linalg.cholesky(gram)
            determinant[part] += 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            scaled = torch.linalg.solve_triangular(lower, scaled, upper=False) * root
            for some in torch.arange(len(z), device=z.device).split(max(1, _ELEMENTS // scaled[..., 0].numel())):
                seen = z[some] @ scaled.mT - self.means[part, None, :-1] @ scaled.mT
                distance[some[:, None], part] -= seen.square().sum(-1).T
        constant = float(self.copies.sum()) * math.log(2 * math.pi)
        return torch.logsumexp(self.log_weights - (distance + determinant + constant) / 2, 1)

    def guard(self, squares: Tensor) -> Tensor:
        """log of a Student density (n,) as wide as all classes together: a tail that no outlier escapes."""
        dim = float(self.copies.sum())
        half = (_FREEDOM + dim) / 2
        constant = math.lgamma(half) - math.lgamma(_FREEDOM / 2) - dim / 2 * math.log(_FREEDOM * math.pi)
        stretch = torch.log1p(squares @ (1 / self.total) / _FREEDOM)
        return constant - (self.copies * self.total.log()).sum() / 2 - half * stretch

    @cached_property
    def roots(self) -> list[tuple[Tensor, Tensor]]:
        """`(classes, roots)` with roots (c, m, r) whose squares are the scatters; classes of like sizes together."""
        width = self.residuals.shape[1]
        sizes, order = self.counts.sort()
        members = self.owner.argsort(stable=True).split(self.counts.tolist())
        found, start = [], int((sizes < 2).sum())
        limits = sizes.tolist()
        while start < len(limits):
            end = start + 1
            while end < len(limits) and (end + 1 - start) * limits[end] * width <= _ELEMENTS:
                end += 1
            blocks = [self.residuals[members[j]] for j in order[start:end].tolist()]
            roots = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True)
            if roots.shape[1] > width:
                roots = torch.linalg.qr(roots, mode="r")[1]
            found.append((order[start:end], roots))
            start = end
        return found


class _Density:
    """Every candidate fitted on some rows, for each way to cut them into classes."""

    def __init__(
        self, places: _Places, rows: Tensor, partitions: Sequence[tuple[Tensor, int]], forms: Sequence[_Candidate]
    ) -> None:
        self.places = places
        self._fitted: list[_Fitted] = []
        for owner, k in partitions:
            for axes in sorted({form.axes for form in forms}):
                own = tuple(form for form in forms if form.axes == axes)
                self._fitted.append(_Fitted(own, *self._fit(axes, rows, owner, k)))

    def _fit(self, axes: str, rows: Tensor, owner: Tensor, k: int) -> tuple[Tensor, Tensor | None, _Classes]:
        """The centre, the axes (None for those of the features) and the classes."""
        x, _, _ = self._place(axes)
        x = x[rows] - (centre := x[rows].mean(0))
        counts = torch.bincount(owner, minlength=k)
        means = x.new_zeros(k, x.shape[1]).index_add_(0, owner, x) / counts.clamp(min=1)[:, None]
        within = x - means[owner]
        freedom = max(1, len(x) - int((counts > 0).sum()))
        if axes == "given":
            variances = within.square().sum(0) / freedom
            common = torch.lerp(variances, variances.mean(), 4 / (4 + freedom))
            return centre, None, _Classes(x, owner, k, _padded(common), 0)
        covariance = within.T @ within / freedom
        share, mean = _shrinkage(within, covariance, self.places.dim)
        values, vectors = torch.linalg.eigh(covariance)
        common = (1 - share) * _padded(values.clamp(min=0)) + share * mean
        return centre, vectors, _Classes(x @ vectors, owner, k, common, self.places.spare)

    def _place(self, axes: str) -> tuple[Tensor, Tensor, Tensor]:
        """Clean features, their noise, and the noise's squared length outside, as these axes see them."""
        places = self.places
        if axes == "given":
            return places.given, places.noise, torch.zeros_like(places.outside)
        return places.span, places.span_noise, places.outside

    def log_each(self, rows: Tensor, *, draws: int, wanted: Tensor | None = None) -> Tensor:
        """log q (draws * n, C) of noisy rows under every candidate, the guard first; only the `wanted` ones."""
        found: list[Tensor] = []
        index = 0
        for forms, centre, vectors, classes in self._fitted:
            clean, noise, outside = self._place(forms[0].axes)
            z = (clean[rows] - centre + noise[:draws, rows]).flatten(0, 1)
            z = z if vectors is None else z @ vectors
            squares = torch.cat([z.square(), outside[:draws, rows].reshape(-1, 1)], 1)
            if not found:
                found.append(classes.guard(squares))
            for form in forms:
                index += 1
                if wanted is None or bool(wanted[index]):
                    found.append(classes.log(z, squares, form))
        return torch.stack(found, 1)

    def log(self, rows: Tensor, weights: Tensor) -> Tensor:
        """log q (draws, n) of noisy rows, the candidates mixed."""
        wanted = weights > _LEAST_WEIGHT
        wanted[0] = True
        weights = weights[wanted] / weights[wanted].sum()
        draws = len(self.places.noise)
        each = self.log_each(rows, draws=draws, wanted=wanted)
        return torch.logsumexp(each + weights.log(), 1).reshape(draws, -1)

    def control(self, rows: Tensor) -> Tensor:
        """(draws, n), of mean 0: what the noise itself adds to -log q, by the common covariance."""
        forms, _, vectors, classes = self._fitted[-1]
        _, noise, outside = self._place(forms[0].axes)
        squares = (noise[:, rows] if vectors is None else noise[:, rows] @ vectors).square()
        precision = 1 / (1 + classes.common)
        return ((squares - 1) @ precision[:-1] + (outside[:, rows] - self.places.spare) * precision[-1]) / 2


class _Fitted(NamedTuple):
    forms: tuple[_Candidate, ...]
    centre: Tensor
    vectors: Tensor | None
    classes: _Classes


def _padded(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(*values.shape[:-1], 1)], -1)


def _shrinkage(rows: Tensor, covariance: Tensor, dim: int) -> tuple[float, float]:
    """Ledoit and Wolf's (2004) share of a multiple of the identity, and that multiple."""
    mean = float(covariance.trace()) / dim
    power = float(covariance.square().sum()) / dim
    apart = power - mean**2
    chance = (float(rows.square().sum(1).square().mean()) / dim - power) / len(rows)
    return (min(1.0, max(0.0, chance / apart)) if apart > 0 else 1.0), mean


def _clusterings(rows: Tensor, seed: int) -> list[tuple[Tensor, int]]:
    """`(owner, k)` by k-means at several k."""
    source = torch.Generator().manual_seed(derive_seed(seed, "held-out-clusters"))
    wanted = [k for k in _CLUSTERS if k == 1 or k * _PER_CLUSTER <= len(rows)]
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


def _checked(features: Tensor, labels: Tensor | None, noise_std: float) -> tuple[Tensor, Tensor]:
    """Features (N, D) in float64 and in units of the noise, and their classes, numbered from 0."""
    if not isinstance(noise_std, int | float) or not noise_std > 0 or not math.isfinite(noise_std):
        raise ConfigError(
            f"noise_std is {noise_std!r}: without noise the information is infinite; pass the standard deviation of "
            "the channel's noise, above 0"
        )
    if not isinstance(features, Tensor) or features.ndim < 2 or len(features) < _FEWEST or features[0].numel() == 0:
        shape = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise FeatureError(f"features are {shape}; pass a tensor (N, ...) of at least {_FEWEST} clean features")
    samples = features.detach().flatten(1).double() / noise_std
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
