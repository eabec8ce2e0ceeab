"""Ridge regression from features to pixels, from moments or from Gram matrices."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.base import Observer
from sfumato.metrics import mse
from sfumato.seeds import generator

__all__ = [
    "STRENGTHS",
    "Linear",
    "best_linear",
    "dual_path",
    "learned_from",
    "linear_bytes",
    "part_of",
    "primal_path",
]

STRENGTHS = tuple(10.0**exponent for exponent in (-24, -20, -16, -12, *range(-9, 4)))
"""Relative regularisations a. The smallest is 10^-12 of the largest singular value; below machine precision, which a
singular value decomposition in float64 reaches and a Gram matrix only by its square root, there is nothing to divide
by and the direction is left out."""
Pairs = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]

_EXACT = 2**21  # rows times features up to which the singular values themselves are computed
_WIDE = 2**26  # rows times features, or times pixels, at most where not all rows are taken
_LARGEST = 2**27  # features times pixels up to which they all are


class Linear(NamedTuple):
    """`x_hat = offset + (z - centre) left right`: centre (D,), left (D, r), right (r, d), offset (d,).

    In factors, since the product of a long feature and a large image, D x d, need not fit into memory.
    """

    centre: Tensor
    left: Tensor
    right: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        rows = z.flatten(1).to(self.left.dtype) - self.centre
        return torch.addmm(self.offset, (rows @ self.left).to(self.right.dtype), self.right).float()

    @property
    def slope(self) -> Tensor:
        """(D, d)."""
        return (self.left.to(self.right.dtype) @ self.right).float()


def best_linear(
    observer: Observer,
    learn: Tensor,
    judge: Tensor,
    *,
    draws: int = 4,
    size: int = 4096,
    seed: int = 0,
    pairs: Pairs | None = None,
) -> tuple[Linear, float, float]:
    """The linear attack that learns from `draws` releases of each image at `learn`, with the regularisation that has
    the smallest error on the images at `judge`, clipped to [0, 1]; that error, and the relative regularisation.

    Rows are left out where there are more than `size` of them and more features than that. `pairs` gives images and
    what left the device for them; None takes `observer.pairs`.
    """
    pairs = pairs or observer.pairs
    shown, seen = observer.pairs(judge, generator(seed, "judge", device=observer.device))
    noise = generator(seed, "ridge", device=observer.device)
    dimension = math.prod(observer.feature_shape)
    count = learned_from(observer, len(learn), size)
    if observer.repeats:
        draws = 1  # each would be the same
    elif count < len(learn) or dimension > size:
        draws = max(1, min(draws, size // count, _WIDE // (dimension * count)))
    batches = (pairs(part, noise) for _ in range(draws) for part in observer.parts(learn[:count]))
    rows = ((z.flatten(1), x.flatten(1)) for x, z in batches)
    if max(dimension * dimension, _EXACT) < dimension * draws * count:
        path = primal_path(rows, STRENGTHS)
    else:
        z, x = (torch.cat(part) for part in zip(*rows, strict=True))
        path = dual_path(z, x, STRENGTHS)
    best: tuple[Linear, float, float] | None = None
    for strength, candidate in zip(STRENGTHS, path, strict=True):
        x_hat = candidate(seen).clamp(0, 1).reshape(shown.shape)
        error = float(mse(shown, x_hat).double().mean())
        if best is None or error < best[1]:
            best = candidate, error, strength
    assert best is not None
    return best


def learned_from(observer: Observer, count: int, size: int) -> int:
    """Of `count` images how many the linear attack learns from: a part where features or images are long."""
    dimension, pixels = math.prod(observer.feature_shape), math.prod(observer.image_shape)
    if dimension <= size and dimension * pixels <= _LARGEST:
        return count
    return min(count, size, max(2, _WIDE // max(dimension, pixels)))


def linear_bytes(dimension: int, pixels: int, count: int, draws: int, size: int) -> float:
    """What `best_linear` takes at its peak, within a factor of about 2: moments of the features, or inner products of
    the rows where those are fewer.
    """
    rows = count * draws
    if dimension > size or dimension * pixels > _LARGEST:
        rows = min(count, size, max(2, _WIDE // max(dimension, pixels)))
    if dimension <= rows:
        return 8.0 * (5 * dimension**2 + 3 * dimension * pixels)
    return 8.0 * (5 * rows**2 + 4 * rows * (dimension + pixels))


def part_of(count: int, observer: Observer) -> str:
    """`, from 4,096 of the attacker's 45,000 images` where it is not all of them."""
    whole = len(observer)
    return f", from {count:,} of the attacker's {whole:,} images" if count < whole else ""


@torch.no_grad()
def primal_path(batches: Iterable[tuple[Tensor, Tensor]], strengths: Sequence[float]) -> Iterator[Linear]:
    """Ridge regression with an unpenalised intercept from batches of rows (z, x), (n, D) and (n, d).

    Only moments are kept, D x D and D x d. The penalty of strength a is `a trace(Z^T Z) / D |W|^2` with Z centred, so
    that a has no unit; in the language of scikit-learn `Ridge(alpha=a * trace(Z^T Z) / D)`.
    """
    count = 0
    for z, x in batches:
        z, x = z.double(), x.double()
        if count == 0:
            origin_z, origin_x = z.mean(0), x.mean(0)  # near the means, so that little cancels below
            gram, cross = z.new_zeros(z.shape[1], z.shape[1]), z.new_zeros(z.shape[1], x.shape[1])
            sum_z, sum_x = torch.zeros_like(origin_z), torch.zeros_like(origin_x)
        z, x = z - origin_z, x - origin_x
        gram.addmm_(z.T, z)
        cross.addmm_(z.T, x)
        sum_z, sum_x, count = sum_z + z.sum(0), sum_x + x.sum(0), count + len(z)
    gram -= torch.outer(sum_z, sum_z / count)
    cross -= torch.outer(sum_z, sum_x / count)
    values, vectors = torch.linalg.eigh(gram)
    mean_z, mean_x = origin_z + sum_z / count, origin_x + sum_x / count
    yield from _solve(values, values, vectors, vectors.T @ cross, mean_z, mean_x, strengths)


@torch.no_grad()
def dual_path(z: Tensor, x: Tensor, strengths: Sequence[float]) -> Iterator[Linear]:
    """`primal_path` for rows (n, D) in memory: through their singular values Z = U S V^T, or, where there are many, the
    n x n Gram matrix, whose eigenvectors give `Z^T U`. Never a D x D or a D x d matrix.
    """
    exact = z.numel() <= _EXACT
    z, x = z.double() if exact else z, x.double()
    mean_z, mean_x = z.mean(0), x.mean(0)
    z, x = z - mean_z, x - mean_x
    if exact:
        left, singular, right = torch.linalg.svd(z, full_matrices=False)
        cross = singular[:, None] * (left.T @ x)
        yield from _solve(singular.square(), singular, right.T, cross, mean_z, mean_x, strengths)
        return
    gram = z.new_zeros(len(z), len(z), dtype=torch.float64)
    for part in z.split(2**14, dim=1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)
    for one in _solve(values, values, z.T, vectors.T @ x, mean_z, mean_x, strengths):
        yield one._replace(right=vectors @ one.right)


def _solve(
    values: Tensor, precise: Tensor, left: Tensor, cross: Tensor, mean_z: Tensor, mean_x: Tensor,
    strengths: Sequence[float],
) -> Iterator[Linear]:  # fmt: skip
    """W = left (values + a scale)^-1 cross, without what lies below machine precision in `precise`."""
    there = precise > max(precise.shape[0], len(mean_z)) * torch.finfo(precise.dtype).eps * precise.max()
    scale = float(values.clamp_min(0).sum() / len(mean_z))
    for strength in strengths:
        inverse = torch.where(there, 1.0 / (values + strength * scale), 0.0)
        yield Linear(mean_z, left, inverse[:, None] * cross, mean_x)
