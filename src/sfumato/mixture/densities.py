"""The densities that held-out information is bounded by: many forms of a Gaussian mixture, and a tail that guards them.

Everything is in units of the noise, where the channel is z = f + e with e ~ N(0, I).
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ELEMENTS = 1 << 23  # of temporaries at once: 64 MiB
_LEAST_WEIGHT = 1e-3  # of a candidate that is worth its time on the judging fold
_FREEDOM = 3.0  # degrees of freedom of the guard
_TINY = 1e-12


class Candidate(NamedTuple):
    """A form of the classes' covariances: `strength` is the common one's weight in samples."""

    axes: Literal["given", "pooled"]
    own: Literal["none", "diagonal", "full"]
    strength: float
    scale: float


_AXES: tuple[Literal["given", "pooled"], ...] = ("given", "pooled")
CANDIDATES = (
    *(Candidate(axes, "none", math.inf, scale) for axes in _AXES for scale in (0.7, 1.4)),
    *(
        Candidate(axes, "diagonal", strength, scale)
        for axes in _AXES
        for strength in (3.0, 24.0)
        for scale in (0.8, 1.4)
    ),
    *(Candidate("pooled", "full", strength, scale) for strength in (0.5, 3.0, 16.0, 80.0) for scale in (0.8, 1.6)),
)


QUICK = tuple(
    form
    for form in CANDIDATES
    if (form.own == "none" and form.axes == "pooled")
    or (form.own == "diagonal" and form.strength == 3)
    or (form.own == "full" and form.strength in (3, 16) and form.scale > 1)
)


class Places:
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

    def log(self, z: Tensor, squares: Tensor, form: Candidate) -> Tensor:
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


class Density:
    """Every candidate fitted on some rows, for each way to cut them into classes."""

    def __init__(
        self, places: Places, rows: Tensor, partitions: Sequence[tuple[Tensor, int]], forms: Sequence[Candidate]
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
    forms: tuple[Candidate, ...]
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
