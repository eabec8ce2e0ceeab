"""Gaussian mixtures by expectation-maximization, for Algorithm 1 as the paper prints it; nothing else uses EM.

All of it is float64, chunk by chunk: with fewer samples than dimensions the smallest eigenvalues are `reg_covar`, below
the rounding of float32.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError, NotFittedError
from sfumato.mixture._inputs import check_features, check_finite, check_positive, chunk_slices, seeded
from sfumato.mixture.families import moments
from sfumato.mixture.kmeans import kmeans, nearest

_LOG_2PI = math.log(2 * math.pi)
_START_ITERATIONS = 50
# k-means only has to find a start: from twice as many samples on, it looks at a random subset of this size.
_SUBSET = 10_000
_SUBSET_PER_COMPONENT = 200
# A component that answers for less than this many samples is empty.
_EMPTY = 1e-2


class Parameters(NamedTuple):
    """A Gaussian mixture: weights (k,), means (k, D), covariances (k, D, D); float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


class GaussianMixture:
    r"""A mixture of k Gaussians, fitted by EM (Dempster, Laird and Rubin 1977).

        p(z) = sum_j pi_j N(z; mu_j, Sigma_j),    log likelihoods in nats

    `reg_covar` is added to every variance after every M-step, as scikit-learn does; it keeps components with fewer
    samples than dimensions positive definite, and can let the likelihood fall by a trifle, which otherwise never falls.
    A component that answers for less than 0.01 samples, or whose covariance is singular, is restarted once, with weight
    1/n, at the sample the mixture explains worst and with the average covariance. One that runs empty again keeps its
    last mean and covariance at weight about 0; one that becomes singular again is an error.

    Theorem 2 holds for a mixture that z_hat really follows, or for the moments of a hard partition (`Partition`,
    `moments`); EM on real data is neither.

    Args:
        k: number of components.
        tol: stop when the mean log likelihood per sample changes by less, nats.
        max_iter: at most so many iterations.
        reg_covar: see above, in squared units of the features.

    Attributes:
        weights_: (k,) float64.
        means_: (k, D) float64.
        covariances_: (k, D, D) float64.
        lower_bounds_: mean log likelihood per sample at each E-step, so before the last M-step.
        n_iter_: iterations made.
        converged_: whether `tol` was reached.

    Raises:
        ConfigError: a setting without meaning.

    Example:
        >>> import torch
        >>> fitted = GaussianMixture(2).fit(torch.tensor([[0.0], [2.0], [10.0], [12.0]]))
        >>> print(*(round(float(mean), 2) for mean in fitted.means_.sort(0).values))
        1.0 11.0
    """

    weights_: Tensor
    means_: Tensor
    covariances_: Tensor
    lower_bounds_: list[float]
    n_iter_: int
    converged_: bool

    def __init__(
        self,
        k: int,
        *,
        tol: float = 1e-3,
        max_iter: int = 100,
        reg_covar: float = 1e-6,
    ) -> None:
        check_positive(k=k, max_iter=max_iter)
        if not (tol >= 0 and reg_covar >= 0 and math.isfinite(reg_covar)):
            raise ConfigError(f"tol ({tol}) and reg_covar ({reg_covar}) must not be negative")
        self.k = k
        self.tol = tol
        self.max_iter = max_iter
        self.reg_covar = reg_covar

    @torch.no_grad()
    def fit(
        self, features: Tensor, *, init: Parameters | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Maximise the likelihood of the samples.

        Args:
            features: (n, D) float32 or float64, n >= 1; fewer samples than components or dimensions are allowed.
            init: where to start; when left out, k-means, on a random subset of a large set.
            generator: source of randomness for k-means; a new one with seed 0 when left out.

        Raises:
            FeatureError: features not finite, empty or of a wrong shape or dtype, an `init` that does not fit them,
                or a component that is not positive definite (with reg_covar = 0).
        """
        check_features(features)
        check_finite(features)
        now = self._clustered(features, seeded(generator)) if init is None else self._checked(init, features)
        restarted = torch.zeros(self.k, dtype=torch.bool, device=features.device)
        likelihood = features.new_empty(len(features), dtype=torch.float64)
        bounds: list[float] = []
        converged = False
        while len(bounds) < self.max_iter and not converged:
            counts, sums, squares = (torch.zeros_like(part) for part in now)
            density = _Density(now)
            for part in chunk_slices(features):
                chunk = features[part].double()
                joint = density.log_joint(chunk)
                likelihood[part] = joint.logsumexp(1)
                share = (joint - likelihood[part, None]).exp()
                counts += share.sum(0)
                self._add(chunk, share, now.means, sums, squares)
            bounds.append(float(likelihood.mean()))
            now = self._maximised(now, counts, sums, squares)
            lost = ((counts < _EMPTY) | _singular(now.covariances)) & ~restarted
            if bool(lost.any()):
                restarted |= lost
                now = _restart(now, lost, features, likelihood)
            elif len(bounds) > 1:
                converged = abs(bounds[-1] - bounds[-2]) < self.tol
        self.weights_, self.means_, self.covariances_ = now
        self.lower_bounds_, self.n_iter_, self.converged_ = bounds, len(bounds), converged
        return self

    @torch.no_grad()
    def score_samples(self, features: Tensor) -> Tensor:
        """log p(z) of each sample, (n,) float64, nats."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("this mixture has not been fitted; call fit(features) first")
        check_features(features, self.means_.shape[1])
        density = _Density(Parameters(self.weights_, self.means_, self.covariances_))
        parts = [density.log_joint(features[part].double()).logsumexp(1) for part in chunk_slices(features)]
        return torch.cat(parts)

    def _add(self, chunk: Tensor, share: Tensor, means: Tensor, sums: Tensor, squares: Tensor) -> None:
        """Sums about the present means, so that nothing cancels near convergence."""
        for j in range(self.k):
            centred = chunk - means[j]
            weighted = centred * share[:, j, None]
            sums[j] += weighted.sum(0)
            squares[j].addmm_(weighted.T, centred)

    def _maximised(self, old: Parameters, counts: Tensor, sums: Tensor, squares: Tensor) -> Parameters:
        """The M-step; a component of weight 0 keeps what it was."""
        each = torch.where(counts > 0, counts, 1.0)[:, None]
        moved = sums / each
        covariances = self._regularised(squares / each[..., None] - moved[:, :, None] * moved[:, None, :])
        gone = counts == 0
        covariances[gone] = old.covariances[gone]
        return Parameters(counts / counts.sum(), old.means + moved, covariances)

    def _clustered(self, features: Tensor, source: torch.Generator) -> Parameters:
        subset = features
        if len(features) > 2 * (size := max(_SUBSET, _SUBSET_PER_COMPONENT * self.k)):
            drawn = torch.randperm(len(features), generator=source, device=source.device)[:size]
            subset = features[drawn.to(features.device)]
        centres = kmeans(subset, self.k, iterations=_START_ITERATIONS, generator=source).centres
        everywhere = features.mean(0).repeat(self.k, 1)
        found = moments(features, nearest(features, centres), self.k, "full", fallback=everywhere)
        weights = found.counts.double() / len(features)
        return Parameters(weights, found.means.double(), self._regularised(found.covariances.double()))

    def _checked(self, init: Parameters, features: Tensor) -> Parameters:
        k, dim = self.k, features.shape[1]
        wanted = ((k,), (k, dim), (k, dim, dim))
        if tuple(tuple(part.shape) for part in init) != wanted:
            raise FeatureError(
                f"init has shapes {', '.join(str(tuple(part.shape)) for part in init)}; a mixture of "
                f"{k} components in {dim} dimensions starts from {', '.join(map(str, wanted))}"
            )
        weights, means, covariances = (part.detach().to(features.device).double() for part in init)
        if not bool((weights >= 0).all()) or not abs(float(weights.sum()) - 1) < 1e-3:
            raise FeatureError("the weights of init are no shares; they must not be negative and sum to 1")
        return Parameters(weights / weights.sum(), means, covariances)

    def _regularised(self, covariances: Tensor) -> Tensor:
        """Raised by reg_covar, in place."""
        covariances.diagonal(dim1=1, dim2=2).add_(self.reg_covar)
        return covariances


class _Density:
    """log pi_j + log N(z; mu_j, Sigma_j) for chunks of samples; a component of weight 0 may have any covariance."""

    def __init__(self, parameters: Parameters) -> None:
        weights, self.means, covariances = parameters
        used = weights > 0
        if len(bad := (used & _singular(covariances)).nonzero()):
            raise FeatureError(
                f"the covariance of component {int(bad[0])} is not positive definite; raise reg_covar, or fit fewer "
                "components"
            )
        self.used: list[int] = used.nonzero().squeeze(1).tolist()
        self.roots = torch.linalg.cholesky_ex(covariances).L
        logs = 2 * self.roots.diagonal(dim1=1, dim2=2).log().sum(1)
        self.constant = weights.log() - 0.5 * (logs + self.means.shape[1] * _LOG_2PI)

    def log_joint(self, chunk: Tensor) -> Tensor:
        """(b, D) float64 -> (b, k)."""
        result = chunk.new_full((len(chunk), len(self.means)), -math.inf)
        for j in self.used:
            white = torch.linalg.solve_triangular(self.roots[j], (chunk - self.means[j]).T, upper=False).T
            result[:, j] = self.constant[j] - 0.5 * white.square().sum(1)
        return result


def _singular(covariances: Tensor) -> Tensor:
    """(k,) bool: covariances that are not positive definite."""
    return torch.linalg.cholesky_ex(covariances).info != 0


def _restart(now: Parameters, lost: Tensor, features: Tensor, likelihood: Tensor) -> Parameters:
    weights, means, covariances = (part.clone() for part in now)
    worst = likelihood.topk(min(int(lost.sum()), len(features)), largest=False).indices
    chosen = lost.nonzero().squeeze(1)[: len(worst)]
    average = torch.tensordot(weights, covariances, dims=1)
    weights[chosen] = 1 / len(features)
    means[chosen] = features[worst].double()
    covariances[chosen] = average
    return Parameters(weights / weights.sum(), means, covariances)
