"""What one EM pass needs of a covariance family: log densities of a chunk of samples, and the sums of the M-step."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.mixture.families import Covariance

__all__ = ["EMPass", "Parameters", "em_pass", "posterior", "singular"]

_LOG_2PI = math.log(2 * math.pi)
# Rounding of a log density, in nats, above which float32 features are widened to float64 chunk by chunk.
_ROUNDING_LIMIT = 1e-2
# exp of this is a normal number in float32, and below the rounding of a sum even in float64.
_NEGLIGIBLE = -80.0


class Parameters(NamedTuple):
    """A Gaussian mixture: weights (k,), means (k, D), covariances (k, D, D), (k, D) or (k,); float64 inside EM."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


class EMPass(Protocol):
    """One pass over the data with fixed parameters."""

    def log_joint(self, chunk: Tensor) -> Tensor:
        """(b, D) samples -> (b, k), log pi_j + log N(z; mu_j, Sigma_j) in nats; remembers the chunk."""
        ...

    def accumulate(self, responsibilities: Tensor) -> None:
        """Add the remembered chunk to the sums, weighted by (b, k)."""
        ...

    def update(self) -> Parameters:
        """Expected counts (k,) in the place of weights, means and covariances; meaningless where a count is 0."""
        ...


def em_pass(parameters: Parameters, covariance: Covariance, shift: Tensor) -> EMPass:
    """A pass for these parameters, computed around the common `shift` (D,), usually the mean of all samples.

    Raises:
        FeatureError: a covariance is not positive definite.
    """
    if covariance == "full":
        return _FullPass(parameters, shift)
    return _SeparablePass(parameters, shift, spherical=covariance == "spherical")


def posterior(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """`(log sum_j exp, responsibilities)` of (b, k) log joint densities, which are overwritten.

    Responsibilities below the rounding of any sum become exactly 0. As denormal numbers they would slow both the
    exponential and the products of the M-step several times.
    """
    peak = log_joint.amax(1, keepdim=True)
    share = log_joint.sub_(peak).clamp_(min=_NEGLIGIBLE).exp_()
    total = share.sum(1, keepdim=True)
    torch.threshold_(share.div_(total), torch.finfo(share.dtype).eps ** 2, 0.0)
    return (peak + total.log()).squeeze(1), share


def _wide_enough(dtype: torch.dtype, condition: float) -> torch.dtype:
    """The dtype itself, or float64 when sums of this size would lose too many digits."""
    return torch.float64 if torch.finfo(dtype).eps * condition > _ROUNDING_LIMIT else dtype


def _collapsed(component: int) -> FeatureError:
    return FeatureError(
        f"the covariance of component {component} is not positive definite; raise reg_covar, or fit fewer components"
    )


def singular(covariances: Tensor) -> Tensor:
    """(k,) bool: covariances of any family that are not positive definite."""
    if covariances.ndim < 3:
        return ~(covariances.reshape(len(covariances), -1).amin(1) > 0)
    return torch.stack([torch.linalg.cholesky_ex(matrix).info for matrix in covariances]) != 0


class _SeparablePass:
    r"""Diagonal and spherical families: everything is linear in t(z) = (z, z^2), or (z, |z|^2).

    log N = -1/2 sum_d [ log 2 pi v_d + z_d^2 / v_d - 2 z_d mu_d / v_d + mu_d^2 / v_d ] is one product of t(z) with a
    table, and the sums of the M-step are one product of the responsibilities with t(z).
    """

    def __init__(self, parameters: Parameters, shift: Tensor, *, spherical: bool) -> None:
        weights, variances = parameters.weights, parameters.covariances
        self.shift = shift
        self.means = parameters.means - shift.double()
        used = weights > 0
        if len(bad := (used & singular(variances)).nonzero()):
            raise _collapsed(int(bad[0]))
        # Components of weight 0 may have any covariance; 1 keeps their products finite.
        variances = torch.where(used if spherical else used[:, None], variances, 1.0)
        self.spherical = spherical
        k, dim = self.means.shape
        inverse = 1 / (variances[:, None] if spherical else variances)
        reach = self.means.square() * inverse
        constant = reach.sum(1) + (dim * variances.log() if spherical else variances.log().sum(1)) + dim * _LOG_2PI
        self.dtype = _wide_enough(shift.dtype, float(reach.sum(1)[used].max()))
        self.table = torch.cat([self.means * inverse, -0.5 * inverse], 1).T.to(self.dtype)
        self.constant = (weights.log() - 0.5 * constant).to(self.dtype)
        self.width = self.table.shape[0]
        self.chunk = shift.new_empty(0, self.width, dtype=self.dtype)
        self.buffer = self.chunk
        self.counts = self.means.new_zeros(k)
        self.sums = self.means.new_zeros(k, self.width)

    def log_joint(self, chunk: Tensor) -> Tensor:
        dim = chunk.shape[1]
        if len(self.buffer) < len(chunk):
            self.buffer = self.chunk.new_empty(len(chunk), self.width)
        self.chunk = self.buffer[: len(chunk)]
        rows, squares = self.chunk[:, :dim], self.chunk[:, dim:]
        torch.sub(chunk.to(self.dtype), self.shift.to(self.dtype), out=rows)
        if self.spherical:
            torch.sum(rows.square(), 1, keepdim=True, out=squares)
        else:
            torch.square(rows, out=squares)
        return torch.addmm(self.constant, self.chunk, self.table)

    def accumulate(self, responsibilities: Tensor) -> None:
        self.counts += responsibilities.sum(0)
        self.sums += responsibilities.T @ self.chunk

    def update(self) -> Parameters:
        dim = self.means.shape[1]
        average = self.sums / torch.where(self.counts > 0, self.counts, 1.0)[:, None]
        means, squares = average[:, :dim], average[:, dim:]
        size = means.square()
        if self.spherical:
            squares, size = squares.squeeze(1) / dim, size.mean(1)
        variances = squares - size
        # What is left of a variance of 0 after this difference is rounding.
        noise = 8 * torch.finfo(self.dtype).eps * size
        variances = torch.where(variances > noise, variances, 0.0)
        return Parameters(self.counts, means + self.shift.double(), variances)


class _FullPass:
    """Full covariances: z is whitened by P_j with P_j P_j^T = Sigma_j^-1, one component at a time.

    Factors and scatter are float64 whatever the features are: with fewer samples than dimensions the smallest
    eigenvalues are reg_covar, below the rounding of float32. The scatter is summed around the current means, so that
    nothing cancels near convergence, and only over samples whose responsibility is not 0.
    """

    def __init__(self, parameters: Parameters, shift: Tensor) -> None:
        self.old = parameters
        k, dim = parameters.means.shape
        self.used: list[int] = (parameters.weights > 0).nonzero().squeeze(1).tolist()
        factors = {}
        logs = parameters.weights.new_zeros(k)
        condition = 0.0
        for j in self.used:
            covariance = parameters.covariances[j]
            chol, info = torch.linalg.cholesky_ex(covariance)
            if int(info):
                raise _collapsed(j)
            identity = torch.eye(dim, dtype=chol.dtype, device=chol.device)
            factors[j] = torch.linalg.solve_triangular(chol, identity, upper=False).T
            logs[j] = chol.diagonal().log().sum()
            condition = max(condition, float((covariance.trace() * factors[j].square().sum()).sqrt()))
        self.dtype = _wide_enough(shift.dtype, condition)
        self.factors = {j: factor.to(self.dtype) for j, factor in factors.items()}
        self.near = parameters.means.to(self.dtype)
        self.constant = (parameters.weights.log() - logs - 0.5 * dim * _LOG_2PI).to(self.dtype)
        self.chunk = shift.new_empty(0, dim)
        self.counts = parameters.weights.new_zeros(k)
        self.sums = torch.zeros_like(parameters.means)
        self.scatter = torch.zeros_like(parameters.covariances)

    def log_joint(self, chunk: Tensor) -> Tensor:
        self.chunk = chunk
        wide = chunk.to(self.dtype)
        distances = wide.new_zeros(len(chunk), len(self.near))
        for j in self.used:
            distances[:, j] = ((wide - self.near[j]) @ self.factors[j]).square_().sum(1)
        return self.constant - 0.5 * distances

    def accumulate(self, responsibilities: Tensor) -> None:
        self.counts += responsibilities.sum(0)
        for j in self.used:
            rows = responsibilities[:, j].nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            centred = self.chunk[rows].double() - self.old.means[j]
            weighted = centred * responsibilities[rows, j, None]
            self.sums[j] += weighted.sum(0)
            self.scatter[j].addmm_(weighted.T, centred)

    def update(self) -> Parameters:
        means, covariances = self.old.means.clone(), self.scatter
        for j, count in enumerate(self.counts.tolist()):
            if count > 0.0:
                moved = self.sums[j] / count
                means[j] += moved
                covariances[j].div_(count).sub_(torch.outer(moved, moved))
        return Parameters(self.counts, means, covariances)
