"""Entropy and information of Gaussian vectors: what the bounds are built from, and where they are exact."""

import math

import torch
from torch import Tensor

from sfumato.bounds._channel import half_log_ratio
from sfumato.bounds._inputs import ArrayLike, Family, as_tensors, covariance_form, noise_form
from sfumato.errors import FeatureError


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
