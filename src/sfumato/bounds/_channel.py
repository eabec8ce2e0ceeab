"""Whitening by the channel noise: with L L^T = Sigma_p every quantity here is one of I + L^-1 Sigma L^-T.

The eigenvalues of that matrix are at least 1, so its Cholesky factor exists for any positive semidefinite
Sigma, singular ones included, and the log-determinant ratio of Theorem 2 is one log-determinant.
"""

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError

__all__ = ["factor", "half_log_determinant", "noise_root", "whiten_covariances", "whiten_vectors"]


def noise_root(noise: Tensor) -> Tensor:
    """A square root L of the noise covariance: 0-d and (D,) standard deviations, (D, D) lower triangular."""
    if noise.ndim < 2:
        return noise.sqrt()
    root, info = torch.linalg.cholesky_ex(noise)
    if bool((info != 0).any()):
        raise ConfigError(
            "noise_covariance is not positive definite: without noise in every direction the information is "
            "not bounded; add a multiple of the identity"
        )
    return root


def whiten_vectors(vectors: Tensor, root: Tensor) -> Tensor:
    """L^-1 v for the rows v of (n, D)."""
    if root.ndim < 2:
        return vectors / root
    return torch.linalg.solve_triangular(root, vectors.mT, upper=False).mT


def whiten_covariances(covariances: Tensor, full: bool, root: Tensor) -> tuple[Tensor, bool]:
    """L^-1 Sigma L^-T; variances (..., D) stay variances unless the noise is a (D, D) matrix."""
    if not full and root.ndim < 2:
        return covariances / root**2, False
    matrices = covariances if full else torch.diag_embed(covariances)
    if root.ndim == 0:
        return matrices / root**2, True
    if root.ndim == 1:
        return matrices / (root[:, None] * root[None, :]), True
    half = torch.linalg.solve_triangular(root, matrices, upper=False)
    return torch.linalg.solve_triangular(root, half.mT, upper=False), True


def factor(whitened: Tensor) -> Tensor:
    """The lower Cholesky factor of I + W for whitened covariances W (..., D, D).

    Raises:
        FeatureError: I + W is not positive definite, hence W is not positive semidefinite.
    """
    identity = torch.eye(whitened.shape[-1], dtype=whitened.dtype, device=whitened.device)
    root, info = torch.linalg.cholesky_ex(identity + whitened)
    if bool((info != 0).any()):
        which = int(torch.nonzero(info.flatten())[0])
        raise FeatureError(
            f"covariance {which} is not positive semidefinite: it has an eigenvalue below minus the "
            "noise variance, by an error upstream or by rounding; compute the covariances in float64"
        )
    return root


def half_log_determinant(whitened: Tensor, full: bool) -> Tensor:
    """1/2 log|I + W| over the last axis (variances) or the last two (matrices)."""
    if full:
        return factor(whitened).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.log1p(whitened).sum(-1) / 2
