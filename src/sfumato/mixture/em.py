"""Expectation-maximization, for Algorithm 1 as the paper prints it; nothing else uses it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.mixture._inputs import check_features, check_finite, chunk_slices
from sfumato.mixture.families import moments
from sfumato.mixture.kmeans import kmeans

_LOG_2PI = math.log(2 * math.pi)
_FLOOR = 1e-6  # added to every variance after every M-step, as scikit-learn does


class Parameters(NamedTuple):
    """A Gaussian mixture: weights (k,), means (k, D), covariances (k, D, D); float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


def clustered(features: Tensor, k: int, seed: int) -> Parameters:
    """Where expectation-maximization may start: the moments of k clusters by k-means."""
    source = torch.Generator(device=features.device).manual_seed(seed)
    assignment = kmeans(features, k, iterations=50, generator=source).assignment
    counts, means, covariances = moments(features, assignment, k, "full", fallback=features.mean(0).repeat(k, 1))
    covariances.diagonal(dim1=1, dim2=2).add_(_FLOOR)
    return Parameters(counts / len(features), means, covariances)


@torch.no_grad()
def expectation_maximization(
    features: Tensor, start: Parameters, *, iterations: int = 20, tolerance: float = 1e-3
) -> Parameters:
    r"""The Gaussian mixture that explains samples best, from a start (Dempster, Laird and Rubin 1977).

        p(z) = sum_j pi_j N(z; mu_j, Sigma_j),    log likelihoods in nats

    1e-6 is added to every variance after every M-step; it keeps components with fewer samples than dimensions positive
    definite, and can let the likelihood fall by a trifle, which otherwise never falls. A component for which no sample
    answers keeps its mean and covariance at weight 0.

    Theorem 2 holds for a mixture that z_hat really follows, or for the moments of a hard partition (`Partition`,
    `moments`); EM on real data is neither.

    Args:
        features: (n, D) float32 or float64, n >= 1; fewer samples than components or dimensions are allowed.
        start: where to start.
        iterations: at most so many.
        tolerance: stop when the mean log likelihood per sample changes by less, nats.

    Raises:
        FeatureError: features not finite, empty or of a wrong shape or dtype, or a component that is not positive
            definite: features so large that 1e-6 is lost in their rounding.

    >>> import torch
    >>> start = Parameters(torch.tensor([0.5, 0.5]), torch.tensor([[1.0], [9.0]]), torch.ones(2, 1, 1))
    >>> fitted = expectation_maximization(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), start)
    >>> print(*(round(float(mean), 2) for mean in fitted.means))
    1.0 11.0
    """
    check_features(features, start.means.shape[1])
    check_finite(features)
    # All in float64: with fewer samples than dimensions the smallest eigenvalues are 1e-6, below float32's rounding.
    now, before = Parameters(*(part.double() for part in start)), -math.inf
    k, dim = now.means.shape
    for _ in range(iterations):
        roots, info = torch.linalg.cholesky_ex(now.covariances)
        if bool(info.any()):
            raise FeatureError(
                f"the covariance of component {int(info.nonzero()[0])} is not positive definite; fit fewer components, "
                "or bound the features (a sigmoid at the end of the encoder, or clip_norm)"
            )
        constant = now.weights.log() - roots.diagonal(dim1=1, dim2=2).log().sum(1) - dim / 2 * _LOG_2PI
        counts, sums, squares = (torch.zeros_like(part) for part in now)
        total = 0.0
        for part in chunk_slices(features):
            chunk = features[part].double()
            white = (torch.linalg.solve_triangular(roots[j], (chunk - now.means[j]).T, upper=False) for j in range(k))
            joint = constant - 0.5 * torch.stack([one.square().sum(0) for one in white], 1)
            likelihood = joint.logsumexp(1)
            total += float(likelihood.sum())
            share = (joint - likelihood[:, None]).exp()
            counts += share.sum(0)
            for j in range(k):  # sums about the present means, so that nothing cancels near convergence
                centred = chunk - now.means[j]
                weighted = centred * share[:, j, None]
                sums[j] += weighted.sum(0)
                squares[j].addmm_(weighted.T, centred)
        each = counts.where(counts > 0, 1.0)[:, None]
        moved = sums / each
        covariances = squares / each[..., None] - moved[:, :, None] * moved[:, None, :]
        covariances.diagonal(dim1=1, dim2=2).add_(_FLOOR)
        covariances[counts == 0] = now.covariances[counts == 0]
        now = Parameters(counts / counts.sum(), now.means + moved, covariances)
        if abs(total / len(features) - before) < tolerance:
            break
        before = total / len(features)
    return now
