"""What a released feature tells about its input, locally: Fisher information of the Gaussian channel, and dFIL."""

import torch
from torch import Tensor

from sfumato.bounds._channel import noise_root
from sfumato.bounds._inputs import ArrayLike, as_tensors, noise_form, require_finite
from sfumato.errors import FeatureError

_ROWS_AT_ONCE = 4096


def fisher_factor(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """A factor F of the mean Fisher information, `F^T F = E[J(x)^T Sigma_p^-1 J(x)]`, by whitening the Jacobians.

    Args:
        jacobians: (n, D, d), J = d z_hat / d x at n inputs.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (n D, d), the rows of Sigma_p^-1/2 J(x_i) / sqrt(n), image after image.

    Raises:
        FeatureError: the Jacobians have another shape, are empty, or hold NaN.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> fisher_factor([[[2.0]]], 4.0).tolist()  # a slope of 2 through noise of variance 4
    [[1.0]]
    """
    white = _whitened(jacobians, noise_covariance)
    return white.reshape(-1, white.shape[2]) / len(white) ** 0.5


def fisher_information(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """Mean Fisher information about the input, `J_D = E[J(x)^T Sigma_p^-1 J(x)]`, per unit of x squared.

    z given x is N(z_hat(x), Sigma_p), whose Fisher information about x is J^T Sigma_p^-1 J; the mean runs over the n
    inputs given. K releases of the same input with independent noise have K times this information.

    Args:
        jacobians: (n, D, d), J = d z_hat / d x at n inputs drawn from the distribution of x.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (d, d), symmetric and positive semidefinite.

    Raises:
        FeatureError: the Jacobians have another shape, are empty, or hold NaN.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> fisher_information([[[6.0]]], 4.0).tolist()
    [[9.0]]
    """
    factor = fisher_factor(jacobians, noise_covariance)
    total = factor.new_zeros(factor.shape[1], factor.shape[1])
    for rows in factor.split(_ROWS_AT_ONCE):
        total = total + rows.mT @ rows
    return total


def dfil(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """Diagonal Fisher information leakage of each input, `dFIL(x) = Tr(J(x)^T Sigma_p^-1 J(x)) / d`.

    An *unbiased* reconstruction of this x has an error of at least 1 / dFIL per dimension (Cramer-Rao, and the harmonic
    mean lies below the arithmetic one; Maeng et al. 2023). Assumption: the attacker is unbiased. Every attacker that
    knows what images look like is biased towards them and may do far better, so 1 / dFIL limits none of the attacks of
    this library and decides nothing; it compares inputs with each other.

    Args:
        jacobians: (n, D, d), J = d z_hat / d x at n inputs.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (n,), in 1 / (unit of x)^2. 0 where the feature does not depend on the input: then 1 / dFIL is infinite.

    Raises:
        FeatureError: the Jacobians have another shape, are empty, or hold NaN.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> dfil([[[2.0, 0.0]]], 4.0).tolist()  # (2^2 / 4 + 0) / 2
    [0.5]
    """
    white = _whitened(jacobians, noise_covariance)
    return white.square().sum((1, 2)) / white.shape[2]


def _whitened(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """L^-1 J with L L^T = Sigma_p, (n, D, d)."""
    slopes, noise = as_tensors(jacobians=jacobians, noise_covariance=noise_covariance)
    if slopes.ndim != 3 or slopes.numel() == 0:
        raise FeatureError(
            f"jacobians have shape {tuple(slopes.shape)}; pass (n, D, d), the derivatives of the D feature values "
            "with respect to the d input values at n >= 1 inputs"
        )
    require_finite("jacobians", slopes)
    root = noise_root(noise_form(noise, slopes.shape[1]))
    if root.ndim == 2:
        return torch.linalg.solve_triangular(root, slopes, upper=False)
    return slopes / (root[:, None] if root.ndim else root)
