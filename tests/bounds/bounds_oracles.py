"""Independent references for the bounds: plain NumPy in float64, one matrix at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

LOG_2_PI_E = 2.8378770664093453


def spd(seed, k, dim, floor=0.1):
    """(k, D, D) well-conditioned random covariances, float64."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(k, dim, dim, generator=generator, dtype=torch.float64)
    return root @ root.mT / dim + floor * torch.eye(dim, dtype=torch.float64)


def simplex(seed, k):
    """k positive weights with sum 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(k, generator=generator, dtype=torch.float64), 0)


def as_matrix(covariance, dim):
    """One covariance of any form as a (D, D) array."""
    values = np.asarray(covariance, dtype=np.float64)
    return values if values.ndim == 2 else np.diag(np.broadcast_to(values, (dim,)))


def theorem_2_by_loop(weights, covariances, noise, dim):
    """Theorem 2 from eigenvalues, one component at a time."""
    total, sigma_p = 0.0, as_matrix(noise, dim)
    for weight, covariance in zip(np.asarray(weights), np.asarray(covariances), strict=True):
        if weight > 0:
            above = np.linalg.eigvalsh(as_matrix(covariance, dim) + sigma_p)
            ratio = np.sum(np.log(above)) - np.sum(np.log(np.linalg.eigvalsh(sigma_p)))
            total += weight * (0.5 * ratio - np.log(weight))
    return total


def log_joint(z, weights, means, covariances, noise):
    """log pi_j N(z; mu_j, Sigma_j + Sigma_p) by SciPy, (N, k)."""
    dim = means.shape[1]
    columns = [
        np.log(w) + multivariate_normal(m, as_matrix(c, dim) + as_matrix(noise, dim)).logpdf(z)
        for w, m, c in zip(np.asarray(weights), np.asarray(means), np.asarray(covariances), strict=True)
    ]
    return np.stack(columns, axis=-1)


def sample_mixture(seed, count, weights, means, covariances, noise):
    """`(z, component)` drawn by NumPy from the noisy mixture; forms as in `as_matrix`."""
    rng = np.random.default_rng(seed)
    dim = means.shape[1]
    component = rng.choice(len(weights), size=count, p=np.asarray(weights))
    z = np.empty((count, dim))
    for j in range(len(weights)):
        rows = component == j
        covariance = as_matrix(covariances[j], dim) + as_matrix(noise, dim)
        z[rows] = rng.multivariate_normal(np.asarray(means[j]), covariance, size=int(rows.sum()))
    return z, component


def sampled_information(seed, count, weights, means, covariances, noise):
    """Monte-Carlo I(z; z_hat) = H(z) - H(eps) of a Gaussian mixture: estimate and its standard error."""
    z, _ = sample_mixture(seed, count, weights, means, covariances, noise)
    surprise = -logsumexp(log_joint(z, weights, means, covariances, noise), axis=1)
    dim = means.shape[1]
    noise_entropy = 0.5 * (dim * LOG_2_PI_E + np.linalg.slogdet(as_matrix(noise, dim))[1])
    return surprise.mean() - noise_entropy, surprise.std(ddof=1) / np.sqrt(count)


@dataclass
class LinearGaussian:
    """x ~ N(0, S), z_hat = A x, z = z_hat + N(0, P): everything is known in closed form."""

    prior: np.ndarray
    encoder: np.ndarray
    noise: np.ndarray

    @property
    def feature_covariance(self):
        return self.encoder @ self.prior @ self.encoder.T

    @property
    def posterior(self):
        """Cov(x|z) from the precision form, which shares no step with a determinant ratio."""
        precision = np.linalg.inv(self.prior) + self.encoder.T @ np.linalg.inv(self.noise) @ self.encoder
        return np.linalg.inv(precision)

    @property
    def input_entropy(self):
        return 0.5 * (len(self.prior) * LOG_2_PI_E + np.linalg.slogdet(self.prior)[1])

    @property
    def left_entropy(self):
        """Exact H(x|z)."""
        return 0.5 * (len(self.prior) * LOG_2_PI_E + np.linalg.slogdet(self.posterior)[1])


def linear_gaussian(seed, d, dim):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d))
    noise = rng.standard_normal((dim, dim))
    return LinearGaussian(
        prior=root @ root.T / d + 0.2 * np.eye(d),
        encoder=rng.standard_normal((dim, d)),
        noise=noise @ noise.T / dim + 0.1 * np.eye(dim),
    )
