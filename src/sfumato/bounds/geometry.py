"""The three lengths whose order decides utility and robustness: the conditions of section 3.4."""

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.bounds._inputs import ArrayLike, as_tensors, means_dim, mixture_form, noise_form, require_finite


class Separation(NamedTuple):
    """What `min |mu_i - mu_j|^2 >> Tr Sigma_p >> max Tr(Sigma_i + Sigma_j)` compares, and the two ratios.

    All are tensors of the batch shape, 0-d for one mixture, in squared feature units.

    >>> lengths = [torch.tensor(value) for value in (25.0, 1.0, 0.5, 25.0, 2.0)]
    >>> float(Separation(*lengths).noise_over_spread)
    2.0
    """

    mean_gap: Tensor
    """min over i != j of |mu_i - mu_j|^2."""
    noise_power: Tensor
    """Tr Sigma_p, the mean squared norm of the noise."""
    spread: Tensor
    """max over i != j of Tr(Sigma_i + Sigma_j)."""
    gap_over_noise: Tensor
    """mean_gap / noise_power: large when the noise leaves the clusters apart (utility)."""
    noise_over_spread: Tensor
    """noise_power / spread: large when the noise drowns what varies within a cluster (robustness)."""


def separation(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, noise_covariance: ArrayLike) -> Separation:
    """Measure the conditions of section 3.4, `min |mu_i - mu_j|^2 >> Tr Sigma_p >> Tr(Sigma_i + Sigma_j)`.

    A description of the mixture, not a bound: the ratios say how far the regime is reached in which noise
    costs little utility and hides much. Components of weight 0 are left out.

    Args:
        weights: pi (..., k), non-negative with sum 1.
        means: mu (..., k, D).
        covariances: Sigma (..., k, D, D) full, (..., k, D) diagonal or (..., k) spherical.
        noise_covariance: Sigma_p: a variance (number or 0-d), (D,) variances or (D, D); 0 is allowed here.

    Returns:
        A `Separation`. With one non-empty component there is no pair: the gap is infinite and the spread
        counts that component twice. A ratio x / 0 is infinite, 0 / 0 is 1 (neither side dominates). Memory is
        k^2.

    Raises:
        FeatureError: shapes that do not match, NaN, or an invalid mixture.
        ConfigError: a noise covariance of the wrong shape or with negative variances.

    >>> found = separation([0.5, 0.5], [[0.0, 0.0], [3.0, 4.0]], [[0.1, 0.1], [0.1, 0.1]], 0.5)
    >>> print([round(float(value), 2) for value in found[:3]])  # 5^2, 2 * 0.5, 4 * 0.1
    [25.0, 1.0, 0.4]
    """
    pi, mu, sigma, noise = as_tensors(
        weights=weights, means=means, covariances=covariances, noise_covariance=noise_covariance
    )
    size = means_dim(pi, mu)
    occupied, _, form, full = mixture_form(pi, sigma, size)
    mu = torch.where(occupied[..., None], mu, torch.zeros_like(mu))
    require_finite("means", mu)
    noise = noise_form(noise, size, allow_zero=True)
    noise_power = noise * size if noise.ndim == 0 else noise.sum() if noise.ndim == 1 else noise.trace()
    gap = _smallest_gap(mu, occupied)
    traces = form.diagonal(dim1=-2, dim2=-1).sum(-1) if full else form.sum(-1)
    spread = _largest_pair(traces, occupied)
    noise_power = noise_power.expand_as(gap)
    return Separation(gap, noise_power, spread, _ratio(gap, noise_power), _ratio(noise_power, spread))


def _smallest_gap(means: Tensor, occupied: Tensor) -> Tensor:
    # Differences, not |a|^2 + |b|^2 - 2ab: close means far from the origin would cancel to nothing.
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = occupied[..., :, None] & occupied[..., None, :]
    pairs = pairs & ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return torch.where(pairs, distances, torch.inf).amin((-2, -1)).square()


def _largest_pair(traces: Tensor, occupied: Tensor) -> Tensor:
    # The largest sum over pairs is that of the two largest, so no pair needs to be formed; empty components
    # have trace 0 here and never come before an occupied one.
    top = traces.topk(min(2, traces.shape[-1]), dim=-1).values
    return top[..., 0] + torch.where(occupied.sum(-1) > 1, top[..., -1], top[..., 0])


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    positive = denominator > 0
    degenerate = torch.where(numerator > 0, torch.inf, 1.0).to(numerator.dtype)
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), degenerate)
