"""Entropy and information of noisy features: exact for Gaussian ones, an upper bound by moments or an enforced norm."""

import math

import torch
from torch import Tensor

from sfumato.bounds._channel import half_log_ratio
from sfumato.bounds._inputs import (
    ArrayLike,
    Family,
    as_tensors,
    broadcast,
    covariance_form,
    mixture_form,
    noise_form,
    require_dim,
)
from sfumato.errors import ConfigError, FeatureError


def gaussian_entropy(covariance: ArrayLike, *, family: Family = "full", dim: int | None = None) -> Tensor:
    """Differential entropy of a Gaussian, `H = 1/2 log((2 pi e)^D |Sigma|)`, in nats.

    It is the largest entropy of any random vector with this covariance (Eq. 9 of the paper's supplement), so
    for data that are not Gaussian it is an upper bound.

    Args:
        covariance: Sigma with any leading batch axes: (..., D, D) for `family="full"`, (..., D) variances for
            "diagonal", (...) one variance for "spherical".
        family: how to read the axes of `covariance`; a (D, D) matrix is never taken for D diagonals.
        dim: D, needed for "spherical" only.

    Returns:
        One entropy per covariance, shape (...). It is negative for small variances: entropy is relative to
        the unit of the vector. For the identity it is D * 1.4189385.

    Raises:
        FeatureError: wrong shape, NaN, not symmetric, or singular (the entropy would be minus infinity).
        ConfigError: unknown family, `dim` missing or contradicting the shape.

    >>> print(f"{gaussian_entropy([[1.0]]):.4f}")  # 1/2 log(2 pi e)
    1.4189
    """
    (values,) = as_tensors(covariance=covariance)
    form, full = covariance_form(values, family, dim, name="covariance")
    # The unit of the vector enters here, and through the determinant: entropy is relative.
    constant = form.shape[-1] * math.log(2 * math.pi * math.e) / 2
    if full:
        root, info = torch.linalg.cholesky_ex(form)
        singular = bool((info != 0).any())
        half_log = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        singular = bool((form.detach() <= 0).any())
        half_log = form.log().sum(-1) / 2
    if singular:
        raise FeatureError(
            "covariance is not positive definite, so the entropy would be minus infinity; "
            "remove constant dimensions or add the noise covariance first"
        )
    return half_log + constant


def gaussian_information(
    covariance: ArrayLike,
    noise_covariance: ArrayLike,
    *,
    family: Family = "full",
    dim: int | None = None,
) -> Tensor:
    """Information through Gaussian noise, `I(z; z_hat) = 1/2 log(|Sigma + Sigma_p| / |Sigma_p|)`, in nats.

    Exact when z_hat ~ N(mu, Sigma) and z = z_hat + eps, eps ~ N(0, Sigma_p) independent of it. For any other
    z_hat with covariance Sigma it is an upper bound: the Gaussian has the largest entropy of z. This is the
    per-component term of Theorem 2.

    Determinants are computed in float64. A Sigma that is given in float32 carries its own rounding, which matters once
    its largest eigenvalue is about 10^6 times the noise variance; pass float64 there.

    Args:
        covariance: Sigma with any leading batch axes: (..., D, D) for `family="full"`, (..., D) variances for
            "diagonal", (...) one variance for "spherical". Singular matrices are fine.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).
        family: how to read the axes of `covariance`; a (D, D) matrix is never taken for D diagonals.
        dim: D, needed for "spherical" only.

    Returns:
        One value >= 0 per covariance, shape (...). Sigma = 0 gives 0. The gradient with respect to a full
        Sigma is `(Sigma + Sigma_p)^-1 / 2`.

    Raises:
        FeatureError: a covariance has a wrong shape, NaN, or is not symmetric positive semidefinite.
        ConfigError: the noise has a zero variance (the information is unbounded) or the wrong shape; unknown
            family; `dim` missing or contradicting the shape.

    >>> print(f"{gaussian_information([[3.0]], 1.0):.4f}")  # 1/2 log 4
    0.6931
    """
    values, noise = as_tensors(covariance=covariance, noise_covariance=noise_covariance)
    form, full = covariance_form(values, family, dim, name="covariance")
    return half_log_ratio(form, full, noise_form(noise, form.shape[-1]))


def clipped_power_information(radius: ArrayLike, noise_std: ArrayLike, dim: int) -> Tensor:
    """Information of a clipped feature, `I(z; z_hat) <= D/2 log(1 + R^2 / (D sigma^2))`, in nats.

    The capacity of D parallel Gaussian channels under a total power R^2, which is spread evenly at best
    (Shannon 1949; Cover and Thomas, Elements of Information Theory, section 9.4).

    Assumption: `|z_hat|_2 <= R` is enforced on the device for every input (the ball may have any fixed
    centre), and eps ~ N(0, sigma^2 I) is independent of it. Nothing is assumed about the data.

    Args:
        radius: R >= 0; any shape.
        noise_std: sigma > 0, a standard deviation (not a variance); broadcast against `radius`.
        dim: D, the number of feature dimensions.

    Returns:
        The bound, in the broadcast shape. R = 0 gives 0; D -> infinity gives R^2 / (2 sigma^2).

    Raises:
        ConfigError: sigma is not positive (the bound would be infinite), R is negative, either is NaN, or
            `dim` is not a positive integer.
        FeatureError: shapes that cannot be broadcast.

    >>> print(f"{clipped_power_information(1.0, 0.5, dim=4):.4f}")  # 2 log 2
    1.3863
    """
    bound, sigma = as_tensors(radius=radius, noise_std=noise_std)
    size = require_dim(dim)
    if not bool((sigma.detach() > 0).all()):
        raise ConfigError("noise_std is not positive: without noise the information is not bounded; pass sigma > 0")
    if not bool((bound.detach() >= 0).all()):
        raise ConfigError("radius is negative or NaN; pass the largest norm |z_hat|_2 that the clipping lets pass")
    bound, sigma = broadcast(radius=bound, noise_std=sigma)
    # log1p: a long feature has little power in each of its D directions.
    return size / 2 * torch.log1p((bound / sigma) ** 2 / size)


def mixture_information(
    weights: ArrayLike,
    covariances: ArrayLike,
    noise_covariance: ArrayLike,
    *,
    dim: int | None = None,
) -> Tensor:
    """Theorem 2: `I(z; z_hat) <= sum_j pi_j (-log pi_j + 1/2 log(|Sigma_j + Sigma_p| / |Sigma_p|))`, in nats.

    z_hat is the clean feature, z = z_hat + eps the released one, eps ~ N(0, Sigma_p) independent of z_hat;
    pi_j, Sigma_j are weight and covariance of cluster j of z_hat (not of z).

    Assumption: with the true moments of the clusters this is a bound for any hard clustering of z_hat,
    whatever its distribution, because each cluster's noisy feature has at most the entropy of a Gaussian with
    its covariance. It is an upper bound for a Gaussian mixture as well, equal for k = 1. Under isotropic
    noise the diagonal and spherical forms (variances; mean variance) of a full covariance stay above the
    full value. With unequal noise variances only the diagonal form does, and with correlated noise neither
    need: pass full covariances there. *Sample* moments underestimate, badly below about 20 samples per
    cluster and, for full covariances, below a few times D: estimate them on held-out features and report the
    sample size.

    Args:
        weights: pi, (..., k), non-negative with sum 1. A component of weight 0 is as good as absent: it adds
            exactly 0, its gradients are 0, and its covariance is not looked at (it may be NaN).
        covariances: Sigma_j, singular ones included: (..., k, D, D) full, (..., k, D) diagonal, or (..., k)
            spherical; the number of axes decides.
        noise_covariance: Sigma_p, positive definite: a variance sigma^2 (number or 0-d), (D,) variances or
            (D, D). It is the square of the noise standard deviation.
        dim: D, mandatory with spherical covariances; elsewhere it may confirm the shape.

    Returns:
        The bound, shape (...), 0-d for a single mixture. One cluster of covariance 0 gives 0; k equal
        clusters of covariance 0 give log k. The gradient with respect to a full Sigma_j is
        `pi_j / 2 (Sigma_j + Sigma_p)^-1`.

    Raises:
        FeatureError: weights or covariances have wrong shapes or values (NaN, negative, not symmetric, not
            positive semidefinite, weights that do not sum to 1).
        ConfigError: the noise has a zero variance (the bound would be infinite), is not positive definite or
            has the wrong shape; `dim` is missing or contradicts the shape.

    >>> print(f"{mixture_information([0.5, 0.5], [[[3.0]], [[3.0]]], 1.0):.4f}")  # log 2 + 1/2 log 4
    1.3863
    """
    pi, sigma, noise = as_tensors(weights=weights, covariances=covariances, noise_covariance=noise_covariance)
    occupied, pi, form, full = mixture_form(pi, sigma, dim)
    within = half_log_ratio(form, full, noise_form(noise, form.shape[-1]))
    # log is taken of 1 where a weight is 0: 0 * log 0 is NaN, and so is its gradient even behind a `where`.
    log_pi = torch.where(occupied, pi, torch.ones_like(pi)).log()
    return torch.where(occupied, pi * (within - log_pi), torch.zeros_like(pi)).sum(-1)
