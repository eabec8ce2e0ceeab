"""How surely a noisy feature still shows its cluster: Eq. 4, the utility side of the trade-off."""

import math

import torch
from torch import Tensor

from sfumato.bounds._channel import factor, noise_root, whiten_covariances, whiten_vectors
from sfumato.bounds._inputs import ArrayLike, as_tensors, means_dim, mixture_form, noise_form, require_finite
from sfumato.errors import FeatureError

_ELEMENTS_AT_ONCE = 2**24  # of the (k, n, D) residuals: 64 MiB in float32, whatever the number of samples


def cluster_posterior(
    z: ArrayLike,
    weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    noise_covariance: ArrayLike,
) -> Tensor:
    """Eq. 4: `P(z_hat in j | z) = pi_j N(z; mu_j, Sigma_j + Sigma_p) / sum_i (the same with i)`.

    z = z_hat + eps is the released, noisy feature; the mixture (pi, mu, Sigma) is that of the clean z_hat.
    Computed in the log domain, so that features far from every cluster still get a proper posterior.

    Assumption: z_hat follows the Gaussian mixture; for fitted clusters of real features the values are those
    of the model, not of the data.

    Args:
        z: (N, ...), flattened row-major to (N, D); N may be 0.
        weights: pi (k,), non-negative with sum 1; a component of weight 0 gets posterior 0, and its mean and
            covariance are not looked at.
        means: mu (k, D).
        covariances: Sigma (k, D, D) full, (k, D) diagonal or (k,) spherical; singular ones included.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (N, k), rows sum to 1. With one component, or clusters far apart for the noise, it tends to 0 and 1;
        with identical components it is pi.

    Raises:
        FeatureError: shapes that do not match, NaN, or an invalid mixture.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> posterior = cluster_posterior([[0.0]], [0.5, 0.5], [[0.0], [2.0]], [[[0.5]], [[0.5]]], 0.5)
    >>> print(f"{posterior[0, 0]:.4f}")  # 1 / (1 + exp(-2))
    0.8808
    """
    features, pi, mu, sigma, noise = as_tensors(
        z=z, weights=weights, means=means, covariances=covariances, noise_covariance=noise_covariance
    )
    size = means_dim(pi.reshape(-1), mu)
    if features.ndim < 2 or math.prod(features.shape[1:]) != size:
        raise FeatureError(
            f"z has shape {tuple(features.shape)}, the means have {size} dimensions; "
            f"pass a batch (N, ...) whose samples flatten to {size} values"
        )
    require_finite("z", features)
    occupied, pi, form, full = mixture_form(pi, sigma, size)
    mu = torch.where(occupied[:, None], mu, torch.zeros_like(mu))
    require_finite("means", mu)
    root = noise_root(noise_form(noise, size))
    whitened, full = whiten_covariances(form, full, root)
    # Whitened, Sigma_j + Sigma_p is I + W_j: its factor exists for singular Sigma_j too.
    spread = factor(whitened) if full else (1 + whitened).sqrt()
    diagonal = spread.diagonal(dim1=-2, dim2=-1) if full else spread
    log_pi = torch.where(occupied, pi, torch.ones_like(pi)).log()
    # -inf takes an absent component out of the softmax, where a log of 0 would leave NaN gradients.
    log_scale = torch.where(occupied, log_pi - diagonal.log().sum(-1), torch.full_like(pi, -torch.inf))
    rows = whiten_vectors(features.reshape(features.shape[0], size), root)
    centres = whiten_vectors(mu, root)
    step = max(1, _ELEMENTS_AT_ONCE // (pi.shape[0] * size))
    # softmax subtracts the largest exponent: far from every cluster their ratios are still right.
    parts = [
        torch.softmax(log_scale - _squared_distances(part, centres, spread, full) / 2, dim=1)
        for part in rows.split(step)
    ]
    return torch.cat(parts)


def own_cluster_posterior(
    z: ArrayLike,
    assignments: ArrayLike,
    weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    noise_covariance: ArrayLike,
) -> Tensor:
    """Mean posterior of the cluster each feature came from, `E_z[P(z_hat in j | z)]` (Eq. 4, left side).

    Near 1 the noise leaves the clusters, hence the task, recognisable; near `sum_j pi_j^2` it drowns them.

    Args:
        z: (N, ...), released features of at least one sample.
        assignments: (N,) integers in 0..k-1, the cluster j of the clean z_hat behind each z.
        weights: see `cluster_posterior`, as for the arguments that follow.
        means: mu (k, D).
        covariances: Sigma in one of the three forms.
        noise_covariance: Sigma_p.

    Returns:
        A 0-d tensor in [0, 1].

    Raises:
        FeatureError: assignments that are not N integers in 0..k-1, no sample, or as in `cluster_posterior`.
        ConfigError: as in `cluster_posterior`.

    >>> mixture = [0.5, 0.5], [[0.0], [2.0]], [[[0.5]], [[0.5]]]
    >>> print(f"{own_cluster_posterior([[0.0], [2.0]], [0, 1], *mixture, 0.5):.4f}")
    0.8808
    """
    posterior = cluster_posterior(z, weights, means, covariances, noise_covariance)
    samples, components = posterior.shape
    own = torch.as_tensor(assignments, device=posterior.device)
    if samples == 0:
        raise FeatureError("z holds no sample, so there is nothing to average; pass at least one feature")
    if tuple(own.shape) != (samples,) or own.is_floating_point() or own.is_complex() or own.dtype == torch.bool:
        raise FeatureError(
            f"assignments have shape {tuple(own.shape)} and dtype {own.dtype}; "
            f"pass the {samples} integer cluster indices of the features"
        )
    if int(own.min()) < 0 or int(own.max()) >= components:
        raise FeatureError(f"assignments lie outside 0..{components - 1}; pass indices of the given components")
    return posterior.gather(1, own.long()[:, None]).mean()


def _squared_distances(rows: Tensor, centres: Tensor, spread: Tensor, full: bool) -> Tensor:
    """(z - mu_j)^T (I + W_j)^-1 (z - mu_j) for whitened rows (n, D) and centres (k, D), shape (n, k)."""
    # Differences first: |a|^2 - 2 ab + |b|^2 would cancel where clusters are tight and far from the origin.
    residuals = rows[None] - centres[:, None]
    if full:
        return torch.linalg.solve_triangular(spread, residuals.mT, upper=False).square().sum(-2).T
    return (residuals / spread[:, None]).square().sum(-1).T
