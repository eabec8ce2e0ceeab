"""Whitening by the channel noise: with L L^T = Sigma_p every quantity here is one of I + L^-1 Sigma L^-T.

The eigenvalues of that matrix are at least 1, so its Cholesky factor exists for any positive semidefinite
Sigma, singular ones included, and the log-determinant ratio of Theorem 2 is one log-determinant.
"""

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError


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
    # Two triangular solves, L^-1 Sigma and then the other side: no inverse is formed.
    half = torch.linalg.solve_triangular(root, matrices, upper=False)
    return torch.linalg.solve_triangular(root, half.mT, upper=False), True


def factor(whitened: Tensor) -> Tensor:
    """The lower Cholesky factor of I + W for whitened covariances W (..., D, D)."""
    # cholesky_ex does not raise, and tells which covariance of a batch failed.
    identity = torch.eye(whitened.shape[-1], dtype=whitened.dtype, device=whitened.device)
    root, info = torch.linalg.cholesky_ex(identity + whitened)
    if bool((info != 0).any()):
        which = int(torch.nonzero(info.flatten())[0])
        raise FeatureError(
            f"covariance {which} is not positive semidefinite: it has an eigenvalue below minus the "
            "noise variance, by an error upstream or by rounding; compute the covariances in float64"
        )
    return root


def half_log_ratio(covariances: Tensor, full: bool, noise: Tensor) -> Tensor:
    """1/2 log(|Sigma + Sigma_p| / |Sigma_p|) in nats, over the last axis (variances) or the last two (matrices).

    Computed in float64, whatever comes in: in float32 the value depends on the kernels of the machine once an
    eigenvalue of Sigma is some 10^4 times the noise (MPS, which has no float64, is the exception).
    """
    wide = torch.float32 if covariances.device.type == "mps" else torch.float64
    whitened, full = whiten_covariances(covariances.to(wide), full, noise_root(noise.to(wide)))
    # Half a log-determinant is the sum of the logs of the Cholesky diagonal. log1p, because 1 + W loses a variance that
    # is far below the noise.
    value = factor(whitened).diagonal(dim1=-2, dim2=-1).log().sum(-1) if full else torch.log1p(whitened).sum(-1) / 2
    return value.to(covariances.dtype)
