"""Gaussian mixtures by expectation-maximization, in the log domain, from the features' own memory in chunks."""

import math
from typing import Self

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError, NotFittedError
from sfumato.mixture._inputs import (
    check_assignment,
    check_features,
    check_finite,
    check_positive,
    chunk_slices,
    seeded,
)
from sfumato.mixture._passes import Parameters, em_pass, posterior, singular
from sfumato.mixture.families import Covariance, check_covariance, moments
from sfumato.mixture.kmeans import kmeans, nearest

__all__ = ["GaussianMixture", "Parameters"]

_START_ITERATIONS = 50
# k-means only has to find a start: from twice as many samples on, it looks at a random subset of this size.
_SUBSET = 10_000
_SUBSET_PER_COMPONENT = 200
# A component that answers for less than this many samples is empty.
_EMPTY = 1e-2


class GaussianMixture:
    r"""A mixture of k Gaussians, fitted by EM (Dempster, Laird and Rubin 1977).

        p(z) = sum_j pi_j N(z; mu_j, Sigma_j),    log likelihoods in nats

    `reg_covar` is added to every variance after every M-step, as scikit-learn does; it keeps components with fewer
    samples than dimensions positive definite, and can let the likelihood fall by a trifle, which otherwise never falls.
    A component that answers for less than 0.01 samples, or whose
    covariance is singular, is restarted once, with weight 1/n, at the sample the mixture explains worst and with the
    average covariance. One that runs empty again keeps its last mean and covariance at weight about 0; one that
    becomes singular again is an error.

    A mixture fitted to clean features z_hat gives the terms of Theorem 2. The theorem holds for a mixture that z_hat
    really follows, or for the moments of a hard partition (`Partition`, `moments`); EM on real data is neither.

    Args:
        k: number of components.
        covariance: `full`, `diagonal` or `spherical`.
        tol: stop when the mean log likelihood per sample changes by less, nats.
        max_iter: at most so many iterations.
        reg_covar: see above, in squared units of the features.

    Attributes:
        weights_: (k,) float64.
        means_: (k, D) float64.
        covariances_: (k, D, D) full, (k, D) diagonal or (k,) spherical; float64, since a matrix whose smallest
            eigenvalue is reg_covar may not survive rounding to float32.
        lower_bounds_: mean log likelihood per sample at each E-step, so before the last M-step.
        lower_bound_: the last of them.
        n_iter_: iterations made.
        converged_: whether `tol` was reached.

    Raises:
        ConfigError: a setting without meaning.
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
        covariance: Covariance = "full",
        *,
        tol: float = 1e-3,
        max_iter: int = 100,
        reg_covar: float = 1e-6,
    ) -> None:
        check_positive(k=k, max_iter=max_iter)
        if not (tol >= 0 and reg_covar >= 0 and math.isfinite(reg_covar)):
            raise ConfigError(f"tol ({tol}) and reg_covar ({reg_covar}) must not be negative")
        self.k = k
        self.covariance = check_covariance(covariance, tied=False)
        self.tol = tol
        self.max_iter = max_iter
        self.reg_covar = reg_covar

    @property
    def lower_bound_(self) -> float:
        """Mean log likelihood per sample at the last E-step, nats."""
        self._fitted()
        return self.lower_bounds_[-1]

    @torch.no_grad()
    def fit(
        self,
        features: Tensor,
        *,
        init: "Parameters | GaussianMixture | Tensor | None" = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Maximise the likelihood of the samples.

        The passes run in the dtype of the features, and chunk by chunk in float64 where float32 would lose more than
        about 0.01 nats of a log density. Next to the features they need a few megabytes and, for full covariances,
        about 5 k D^2 float64 numbers.

        Args:
            features: (n, D) float32 or float64, n >= 1; fewer samples than components or dimensions are allowed.
            init: where to start: `Parameters(weights, means, covariances)`, a fitted mixture (a warm start), or an
                (n,) int64 assignment. When left out, k-means, on a random subset of a large set.
            generator: source of randomness for k-means; a new one with seed 0 when left out.

        Raises:
            FeatureError: features not finite, empty or of a wrong shape or dtype, an `init` that does not fit them,
                or a component that is not positive definite (with reg_covar = 0).
        """
        check_features(features)
        check_finite(features)
        parameters = self._start(features, init, generator)
        shift = features.mean(0)
        restarted = torch.zeros(self.k, dtype=torch.bool, device=features.device)
        likelihood = features.new_empty(len(features))
        bounds: list[float] = []
        converged = False
        while len(bounds) < self.max_iter and not converged:
            step = em_pass(parameters, self.covariance, shift)
            for part in chunk_slices(features):
                likelihood[part], share = posterior(step.log_joint(features[part]))
                step.accumulate(share)
            bounds.append(float(likelihood.mean(dtype=torch.float64)))
            counts, means, covariances = step.update()
            covariances = self._regularised(covariances)
            gone = counts == 0
            means[gone], covariances[gone] = parameters.means[gone], parameters.covariances[gone]
            parameters = Parameters(counts / counts.sum(), means, covariances)
            lost = ((counts < _EMPTY) | singular(parameters.covariances)) & ~restarted
            if bool(lost.any()):
                restarted |= lost
                parameters = self._restart(parameters, lost, features, likelihood)
            elif len(bounds) > 1:
                converged = abs(bounds[-1] - bounds[-2]) < self.tol
        self.weights_, self.means_, self.covariances_ = parameters
        self.lower_bounds_, self.n_iter_, self.converged_ = bounds, len(bounds), converged
        return self

    @torch.no_grad()
    def score_samples(self, features: Tensor) -> Tensor:
        """log p(z) of each sample, (n,), nats, in the dtype of the features."""
        return self._log_joint(features).logsumexp(1)

    def score(self, features: Tensor) -> float:
        """Mean log likelihood per sample, nats."""
        return float(self.score_samples(features).mean(dtype=torch.float64))

    def _fitted(self) -> Parameters:
        if not hasattr(self, "weights_"):
            raise NotFittedError("this mixture has not been fitted; call fit(features) first")
        return Parameters(self.weights_, self.means_, self.covariances_)

    def _log_joint(self, features: Tensor) -> Tensor:
        parameters = self._fitted()
        check_features(features, self.means_.shape[1])
        shift = (self.weights_ @ self.means_).to(features.dtype)
        step = em_pass(parameters, self.covariance, shift)
        result = features.new_empty(len(features), self.k)
        for part in chunk_slices(features):
            result[part] = step.log_joint(features[part])
        return result

    def _start(
        self,
        features: Tensor,
        init: "Parameters | GaussianMixture | Tensor | None",
        generator: torch.Generator | None,
    ) -> Parameters:
        if isinstance(init, GaussianMixture):
            init = init._fitted()
        if isinstance(init, tuple):
            return self._checked(Parameters(*init), features)
        if init is None:
            init = self._cluster(features, seeded(generator))
        check_assignment(init, len(features), self.k)
        found = moments(features, init, self.k, self.covariance, fallback=features.mean(0).repeat(self.k, 1))
        weights = found.counts.double() / len(features)
        return Parameters(weights, found.means.double(), self._regularised(found.covariances.double()))

    def _cluster(self, features: Tensor, source: torch.Generator) -> Tensor:
        subset = features
        if len(features) > 2 * (size := max(_SUBSET, _SUBSET_PER_COMPONENT * self.k)):
            drawn = torch.randperm(len(features), generator=source, device=source.device)[:size]
            subset = features[drawn.to(features.device)]
        found = kmeans(subset, self.k, iterations=_START_ITERATIONS, generator=source)
        return nearest(features, found.centres)

    def _checked(self, init: Parameters, features: Tensor) -> Parameters:
        k, dim = self.k, features.shape[1]
        shape = {"full": (k, dim, dim), "diagonal": (k, dim), "spherical": (k,)}[self.covariance]
        wanted = ((k,), (k, dim), shape)
        if tuple(tuple(part.shape) for part in init) != wanted:
            raise FeatureError(
                f"init has shapes {', '.join(str(tuple(part.shape)) for part in init)}; a {self.covariance} mixture of "
                f"{k} components in {dim} dimensions starts from {', '.join(map(str, wanted))}"
            )
        weights, means, covariances = (part.detach().to(features.device).double() for part in init)
        if not bool((weights >= 0).all()) or not abs(float(weights.sum()) - 1) < 1e-3:
            raise FeatureError("the weights of init are no shares; they must not be negative and sum to 1")
        return Parameters(weights / weights.sum(), means, covariances)

    def _regularised(self, covariances: Tensor) -> Tensor:
        """Raised by reg_covar, in place."""
        variances = covariances.diagonal(dim1=1, dim2=2) if self.covariance == "full" else covariances
        variances.add_(self.reg_covar)
        return covariances

    def _restart(self, now: Parameters, lost: Tensor, features: Tensor, likelihood: Tensor) -> Parameters:
        weights, means, covariances = (part.clone() for part in now)
        worst = likelihood.topk(min(int(lost.sum()), len(features)), largest=False).indices
        chosen = lost.nonzero().squeeze(1)[: len(worst)]
        average = torch.tensordot(weights, covariances, dims=1)
        weights[chosen] = 1 / len(features)
        means[chosen] = features[worst].double()
        covariances[chosen] = average
        return Parameters(weights / weights.sum(), means, covariances)
