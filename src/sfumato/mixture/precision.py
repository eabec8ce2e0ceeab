"""Products with (Sigma_j + sigma^2 I)^-1 for a batch whose rows belong to different clusters, without a loop.

A training step needs `B_j^-1 (z_i - mu_j)` for every row i of a batch, where `B_j = Sigma_j + sigma^2 I` was fixed
at the last refresh. The factors are prepared once (`dense_precision` and its siblings) and applied in every step.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "DensePrecision",
    "DiagonalPrecision",
    "LowRankPrecision",
    "Precision",
    "centred_samples",
    "dense_precision",
    "diagonal_precision",
    "group_rows",
    "low_rank_precision",
]


class Groups(NamedTuple):
    """Rows of a batch laid out cluster by cluster: row i sits at `[assignment[i], slot[i]]` of a padded block."""

    slot: Tensor
    width: int


class Precision(Protocol):
    """What `CEM` asks of a covariance family."""

    log_ratio: Tensor

    def apply(self, rows: Tensor, assignment: Tensor) -> Tensor:
        """(N, D) rows and (N,) clusters -> (N, D): row i multiplied by (Sigma_j(i) + sigma^2 I)^-1."""
        ...


def group_rows(assignment: Tensor, clusters: int) -> Groups:
    """Give each row its position among the rows of its own cluster; `width` is the largest cluster's count."""
    one_hot = torch.nn.functional.one_hot(assignment, clusters)
    slot = (one_hot.cumsum(0) - 1).gather(1, assignment[:, None]).squeeze(1)
    return Groups(slot, int(one_hot.sum(0).max()) if len(assignment) else 0)


def _pad(rows: Tensor, assignment: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    slot, width = group_rows(assignment, clusters)
    padded = rows.new_zeros(clusters, width, rows.shape[1])
    padded[assignment, slot] = rows
    return padded, slot


class DensePrecision:
    """Full covariances: one D x D inverse per cluster.

    Attributes:
        inverse: (k, D, D), B_j^-1.
        log_ratio: (k,), log |Sigma_j + sigma^2 I| / |sigma^2 I| in nats.
    """

    def __init__(self, inverse: Tensor, log_ratio: Tensor) -> None:
        self.inverse = inverse
        self.log_ratio = log_ratio

    def apply(self, rows: Tensor, assignment: Tensor) -> Tensor:
        """See `Precision.apply`: one batched product over the padded groups."""
        padded, slot = _pad(rows, assignment, len(self.inverse))
        return torch.bmm(padded, self.inverse)[assignment, slot]


class LowRankPrecision:
    """Full covariances of clusters with fewer samples than dimensions, in the dual form.

    With the n_j centred samples of a cluster, divided by sqrt(n_j), in the rows of A: `Sigma_j = A^T A`, and by
    Woodbury `B_j^-1 v = (v - U^T U v) / sigma^2` where `U = L^-1 A` and `L L^T = sigma^2 I + A A^T`. Only n_j x n_j
    matrices are factorised, and no D x D matrix is ever stored.

    Attributes:
        factor: (k, r, D), the U_j, padded with zero rows to the largest cluster.
        log_ratio: (k,), log |I + A A^T / sigma^2| in nats, which equals log |Sigma_j + sigma^2 I| / |sigma^2 I|.
    """

    def __init__(self, factor: Tensor, log_ratio: Tensor, variance: float) -> None:
        self.factor = factor
        self.log_ratio = log_ratio
        self.variance = variance

    def apply(self, rows: Tensor, assignment: Tensor) -> Tensor:
        """See `Precision.apply`: two batched products with the padded factors."""
        padded, slot = _pad(rows, assignment, len(self.factor))
        inside = torch.bmm(torch.bmm(padded, self.factor.transpose(1, 2)), self.factor)
        return (rows - inside[assignment, slot]) / self.variance


class DiagonalPrecision:
    """Diagonal covariances, and spherical ones as a single column.

    Attributes:
        inverse: (k, D) or (k, 1), 1 / (variance + sigma^2).
        log_ratio: (k,), summed over the D dimensions, in nats.
    """

    def __init__(self, inverse: Tensor, log_ratio: Tensor) -> None:
        self.inverse = inverse
        self.log_ratio = log_ratio

    def apply(self, rows: Tensor, assignment: Tensor) -> Tensor:
        """See `Precision.apply`: an elementwise product."""
        return rows * self.inverse[assignment]


def dense_precision(covariances: Tensor, variance: float) -> DensePrecision:
    """Factorise (k, D, D) covariances plus `variance` on the diagonal.

    In float64, one cluster at a time: the condition number is about the largest eigenvalue over sigma^2, often 1e4,
    which a float32 inverse does not survive; and one D x D temporary in float64 is cheap where k of them are not.
    """
    inverse = torch.empty_like(covariances)
    log_ratio = covariances.new_empty(len(covariances), dtype=torch.float64)
    for j, covariance in enumerate(covariances):
        shifted = covariance.double() / variance
        shifted.diagonal().add_(1.0)
        chol = torch.linalg.cholesky(shifted)
        log_ratio[j] = 2.0 * chol.diagonal().log().sum()
        inverse[j] = torch.cholesky_inverse(chol).div_(variance)
    return DensePrecision(inverse, log_ratio)


def low_rank_precision(samples: Tensor, variance: float) -> LowRankPrecision:
    """Factorise clusters given by their scaled centred samples (k, r, D), zero rows as padding."""
    factor = torch.empty_like(samples)
    log_ratio = samples.new_empty(len(samples), dtype=torch.float64)
    for j, rows in enumerate(samples):
        wide = rows.double()
        gram = wide @ wide.T / variance
        gram.diagonal().add_(1.0)
        chol = torch.linalg.cholesky(gram)
        log_ratio[j] = 2.0 * chol.diagonal().log().sum()
        factor[j] = torch.linalg.solve_triangular(chol, wide, upper=False) / variance**0.5
    return LowRankPrecision(factor, log_ratio, variance)


def diagonal_precision(variances: Tensor, variance: float, dim: int) -> DiagonalPrecision:
    """Prepare (k, D) diagonal or (k,) spherical variances of features with `dim` dimensions."""
    table = variances if variances.ndim == 2 else variances[:, None]
    log_ratio = (table.double() / variance).log1p().sum(1) * (dim / table.shape[1])
    return DiagonalPrecision(1.0 / (table + variance), log_ratio)


def centred_samples(flat: Tensor, assignment: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """(k, r, D): the samples of each cluster, centred and divided by sqrt(n_j), zero rows as padding."""
    order = assignment.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    sorted_clusters = assignment[order]
    slot = torch.arange(len(flat), device=flat.device) - starts[sorted_clusters]
    rows = flat.new_zeros(len(counts), int(counts.max()), flat.shape[1])
    scale = counts.clamp(min=1).to(flat.dtype).rsqrt()
    rows[sorted_clusters, slot] = (flat[order] - means[sorted_clusters]) * scale[sorted_clusters, None]
    return rows
