"""Products with (Sigma_j + sigma^2 I)^-1 for a batch whose rows belong to different clusters, without a loop.

A training step needs `B_j^-1 (z_i - mu_j)` for every row i of a batch, where `B_j = Sigma_j + sigma^2 I` was fixed
at the last refresh. The factors are prepared once, by the constructors, and applied in every step.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.torch_utils import free_to_look

# Rows per tile of `tile_rows`: enough for matrix units to be used, few enough to waste little on small clusters.
_TILE = 8
# Numbers in the float64 temporaries of a factorisation: one matrix at a time on a CPU, all at once on most GPUs.
_GPU_ELEMENTS = 1 << 27


class Precision(ABC):
    """(Sigma_j + sigma^2 I)^-1 of every cluster in the form of a covariance family.

    Attributes:
        table: the factors.
        log_ratio: (k,), log |Sigma_j + sigma^2 I| / |sigma^2 I| in nats.
        pull: (k,), Tr(B_j^-1 Sigma_j): what (z - mu_j)^T B_j^-1 (z - mu_j) is on average over the cluster's samples.
    """

    def __init__(self, table: Tensor, log_ratio: Tensor, pull: Tensor) -> None:
        self.table, self.log_ratio, self.pull = table, log_ratio, pull

    @abstractmethod
    def apply(self, rows: Tensor, assignment: Tensor | int) -> Tensor:
        """(N, D) rows and (N,) clusters, or one of all -> (N, D): row i multiplied by (Sigma_j(i) + sigma^2 I)^-1."""

    def adopt(self, other: "Precision") -> bool:
        """Take over the numbers of `other` in place, so that whoever reads our tensors sees them.

        False, and nothing done, where the shapes differ.
        """
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("table", "log_ratio", "pull")]
        if type(self) is not type(other) or any(
            (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) for a, b in pairs
        ):
            return False
        for mine, theirs in pairs:
            mine.copy_(theirs)
        return True


def group_rows(assignment: Tensor, clusters: int) -> tuple[Tensor, int]:
    """The position of each row among the rows of its own cluster, (n,), and the number of rows of the largest."""
    one_hot = torch.nn.functional.one_hot(assignment, clusters)
    slot = (one_hot.cumsum(0) - 1).gather(1, assignment[:, None]).squeeze(1)
    return slot, int(one_hot.sum(0).max()) if len(assignment) else 0


def tile_rows(assignment: Tensor, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay rows out in tiles of eight, each of one cluster, without asking the device how many there are.

    Gives the tiles' clusters (t,), and for each row its tile and its slot there, (n,) each.

    n rows of k clusters need at most `n // 8 + min(n, k)` tiles: every cluster that occurs adds at most one that is not
    full. The number of tiles is therefore known before the batch is, which a captured graph needs.
    """
    n = len(assignment)
    count = n // _TILE + min(n, clusters)
    member = assignment[:, None] == torch.arange(clusters, device=assignment.device)
    rank = (member.cumsum(0) - 1).gather(1, assignment[:, None]).squeeze(1)
    tiles = (member.sum(0) + _TILE - 1) // _TILE
    tile = (tiles.cumsum(0) - tiles)[assignment] + rank // _TILE
    owner = torch.zeros(count, dtype=torch.int64, device=assignment.device).scatter_(0, tile, assignment)
    return owner, tile, rank % _TILE


def _grouped(rows: Tensor, assignment: Tensor | int, *tables: Tensor, tiled: bool | None = None) -> Tensor:
    """(n, D): each row multiplied from the right by the matrices of its cluster, tables (k, D, r), (k, r, D) and so on.

    On a CPU the rows are padded to the largest group and the tables read once; on a GPU that would wait for the size of
    that group, so tiles of eight rows gather the tables of the clusters that occur.
    """
    if isinstance(assignment, int):
        for table in tables:
            rows = rows @ table[assignment]
        return rows
    clusters = len(tables[0])
    if free_to_look(rows) if tiled is None else not tiled:
        slot, width = group_rows(assignment, clusters)
        block, place = rows.new_zeros(clusters, width, rows.shape[1]), assignment
    else:
        owner, place, slot = tile_rows(assignment, clusters)
        block = rows.new_zeros(len(owner), _TILE, rows.shape[1])
        tables = tuple(table[owner] for table in tables)
    block[place, slot] = rows
    for table in tables:
        block = torch.bmm(block, table)
    return block[place, slot]


class DensePrecision(Precision):
    """Full covariances: B_j^-1 (k, D, D); (1, D, D) where all clusters share one covariance.

    Factorised in float64: the condition number is about the largest eigenvalue over sigma^2, often 1e4, which a float32
    inverse does not survive. On a CPU one cluster at a time, since one D x D temporary in float64 is cheap where k of
    them are not; on a GPU as many at once as fit its temporaries.

    Args:
        covariances: (k, D, D), or (1, D, D) for all clusters.
        variance: sigma^2.
        clusters: k, where all share one.
    """

    def __init__(self, covariances: Tensor, variance: float, clusters: int | None = None) -> None:
        inverse = torch.empty_like(covariances)
        log_ratio = covariances.new_empty(len(covariances), dtype=torch.float64)
        pull = torch.empty_like(log_ratio)
        for part in _parts(covariances):
            # In units of sigma^2, so that what is factorised is I plus something, whatever the scale of the features.
            scaled = covariances[part].double() / variance
            shifted = scaled.clone()
            shifted.diagonal(dim1=1, dim2=2).add_(1.0)
            chol = _factor(shifted)
            log_ratio[part] = 2.0 * chol.diagonal(dim1=1, dim2=2).log().sum(1)
            exact = torch.cholesky_inverse(chol)
            pull[part] = (exact * scaled).sum((1, 2))  # D - Tr(exact) would cancel where Sigma_j is small
            inverse[part] = exact.div_(variance)
        each = clusters or len(covariances)
        super().__init__(inverse, log_ratio.expand(each).clone(), pull.expand(each).clone())

    def apply(self, rows: Tensor, assignment: Tensor | int) -> Tensor:
        """One batched product over the padded groups, or one product for all."""
        return rows @ self.table[0] if len(self.table) == 1 else _grouped(rows, assignment, self.table)


class LowRankPrecision(Precision):
    """Full covariances of clusters with fewer samples than dimensions, in the dual form.

    With the n_j centred samples of a cluster, divided by sqrt(n_j), in the rows of A: `Sigma_j = A^T A`, and by
    Woodbury `B_j^-1 v = (v - U^T U v) / sigma^2` where `U = L^-1 A` and `L L^T = sigma^2 I + A A^T`. Only n_j x n_j
    matrices are factorised, and no D x D matrix is ever stored. The table (k, r, D) holds the U_j, padded with zero
    rows; log |I + A A^T / sigma^2| and |U|^2 equal the D x D forms.

    Args:
        samples: A of each cluster, (k, r, D) with zero rows as padding.
        variance: sigma^2.
    """

    def __init__(self, samples: Tensor, variance: float) -> None:
        factor = torch.empty_like(samples)
        log_ratio = samples.new_empty(len(samples), dtype=torch.float64)
        for part in _parts(samples):
            wide = samples[part].double()
            gram = wide @ wide.mT / variance
            gram.diagonal(dim1=1, dim2=2).add_(1.0)
            chol = _factor(gram)
            log_ratio[part] = 2.0 * chol.diagonal(dim1=1, dim2=2).log().sum(1)
            factor[part] = torch.linalg.solve_triangular(chol, wide, upper=False) / variance**0.5
        super().__init__(factor, log_ratio, factor.double().square().sum((1, 2)))
        self.variance = variance

    def apply(self, rows: Tensor, assignment: Tensor | int) -> Tensor:
        """Two products with the factors."""
        return (rows - _grouped(rows, assignment, self.table.transpose(1, 2), self.table)) / self.variance


class DiagonalPrecision(Precision):
    """Diagonal covariances, and spherical ones as a single column: 1 / (variance + sigma^2), (k, D) or (k, 1).

    Args:
        variances: (k, D) diagonal or (k,) spherical.
        variance: sigma^2.
        dim: D.
    """

    def __init__(self, variances: Tensor, variance: float, dim: int) -> None:
        table = variances if variances.ndim == 2 else variances[:, None]
        ratio = table.double() / variance
        log_ratio, pull = (value.sum(1) * (dim / table.shape[1]) for value in (ratio.log1p(), ratio / (1 + ratio)))
        super().__init__(1.0 / (table + variance), log_ratio, pull)

    def apply(self, rows: Tensor, assignment: Tensor | int) -> Tensor:
        """An elementwise product."""
        return rows * self.table[assignment]


def _factor(matrices: Tensor) -> Tensor:
    """Cholesky factors of I plus something positive semidefinite, which only overflow or NaN can keep from existing."""
    factors, info = torch.linalg.cholesky_ex(matrices)
    if bool(info.any()) or not bool(torch.isfinite(factors.diagonal(dim1=1, dim2=2)).all()):
        raise FeatureError(
            "the covariance of a cluster is not finite: the features have grown without bound; end the encoder in a "
            "sigmoid, give the channel a clip_norm, or lower the learning rate"
        )
    return factors


def _parts(matrices: Tensor) -> Iterator[slice]:
    """Slices of the clusters whose float64 temporaries are small enough for the device."""
    each = max(1, matrices[0].numel()) if len(matrices) else 1
    step = 1 if free_to_look(matrices) else max(1, _GPU_ELEMENTS // each)
    return (slice(start, start + step) for start in range(0, len(matrices), step))


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
