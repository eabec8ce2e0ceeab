"""Ridge regression from features to pixels, from moments or from Gram matrices."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.base import Observer
from sfumato.metrics import mse
from sfumato.seeds import generator

__all__ = ["STRENGTHS", "Linear", "best_linear", "dual_path", "learned_from", "linear_path", "part_of", "primal_path"]

STRENGTHS = tuple(10.0**exponent for exponent in range(-7, 4))
Pairs = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


class Linear(NamedTuple):
    """`x_hat = offset + z @ slope`: slope (D, d), offset (d,), both float32."""

    slope: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return torch.addmm(self.offset, z.flatten(1), self.slope)


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
    """The linear attack whose regularisation has the smallest error on the images at `judge`, clipped to [0, 1].

    Returns:
        The attack, its error on those images, and its relative regularisation.
    """
    shown, seen = observer.pairs(judge, generator(seed, "judge", device=observer.device))
    best: tuple[Linear, float, float] | None = None
    path = linear_path(observer, learn, draws=draws, size=size, seed=seed, pairs=pairs)
    for strength, candidate in zip(STRENGTHS, path, strict=True):
        x_hat = candidate(seen).clamp(0, 1).reshape(shown.shape)
        error = float(mse(shown, x_hat).double().mean())
        if best is None or error < best[1]:
            best = candidate, error, strength
    assert best is not None
    return best


def linear_path(
    observer: Observer,
    indices: Tensor,
    *,
    draws: int = 4,
    size: int = 4096,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    pairs: Pairs | None = None,
) -> Iterator[Linear]:
    """The linear attacks of these strengths that learn from the images at `indices`.

    Args:
        observer: what the attacker may see.
        indices: of the images to learn from.
        draws: how often each is released.
        size: the largest system of equations: rows are left out where there are more of them and more features.
        seed: of the noise.
        strengths: relative regularisations.
        pairs: (indices, generator) -> images and what left the device for them; None takes `observer.pairs`.
    """
    pairs = pairs or observer.pairs
    noise = generator(seed, "ridge", device=observer.device)
    dimension = math.prod(observer.feature_shape)
    indices = indices[: learned_from(observer, len(indices), size)]
    if dimension > size:
        draws = max(1, min(draws, size // len(indices)))
    batches = (pairs(part, noise) for _ in range(draws) for part in indices.split(1024))
    rows = ((z.flatten(1), x.flatten(1)) for x, z in batches)
    if dimension <= draws * len(indices):
        return primal_path(rows, strengths)
    z, x = (torch.cat(part) for part in zip(*rows, strict=True))
    return dual_path(z, x, strengths)


def learned_from(observer: Observer, count: int, size: int) -> int:
    """Of `count` images how many the linear attack learns from: no more than `size` where a feature is longer."""
    return min(count, size) if math.prod(observer.feature_shape) > size else count


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
        z, x = _wide(z), _wide(x)
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
    rotated = vectors.T @ cross
    yield from _solve(values, vectors, rotated, origin_z + sum_z / count, origin_x + sum_x / count, strengths)


@torch.no_grad()
def dual_path(z: Tensor, x: Tensor, strengths: Sequence[float]) -> Iterator[Linear]:
    """`primal_path` through the n x n Gram matrix, for fewer rows than features."""
    z, x = _wide(z), _wide(x)
    mean_z, mean_x = z.mean(0), x.mean(0)
    z, x = z - mean_z, x - mean_x
    values, vectors = torch.linalg.eigh(z @ z.T)
    yield from _solve(values, z.T @ vectors, vectors.T @ x, mean_z, mean_x, strengths)


def _solve(
    values: Tensor, back: Tensor, rotated: Tensor, mean_z: Tensor, mean_x: Tensor, strengths: Sequence[float]
) -> Iterator[Linear]:
    scale = float(values.clamp_min(0).sum() / len(mean_z))
    for strength in strengths:
        inverse = 1.0 / (values.clamp_min(0) + max(strength * scale, torch.finfo(values.dtype).tiny))
        slope = back @ (inverse[:, None] * rotated)
        yield Linear(slope.float(), (mean_x - mean_z @ slope).float())


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
