"""Linear inversion in closed form: the baseline that says, within seconds, whether a trained attack has converged."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Fit, Observer, Progress, hold_out
from sfumato.attacks.settings import check_share
from sfumato.errors import ConfigError, NotFittedError
from sfumato.metrics import mse
from sfumato.seeds import generator

__all__ = ["Linear", "RidgeAttack", "RidgeConfig", "dual_path", "linear_path", "primal_path"]

_STRENGTHS = tuple(10.0**exponent for exponent in range(-7, 4))


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of the linear attack.

    Attributes:
        draws: releases of every image to learn from, so that the noise is in the moments and not in the coefficients.
        size: the largest system of equations; with more features and more rows than this, rows are left out.
        hold_out: fraction of the attacker's images that only choose the regularisation.
        seed: of the noise and of what is held out.
    """

    draws: int = 4
    size: int = 4096
    hold_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self.hold_out)
        if min(self.draws, self.size) < 1:
            raise ConfigError("draws and size of the ridge attack must be at least 1")


class Linear(NamedTuple):
    """`x_hat = offset + z @ slope`: slope (D, d), offset (d,), both float32."""

    slope: Tensor
    offset: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return torch.addmm(self.offset, z.flatten(1), self.slope)


class RidgeAttack(Attack):
    """Ridge regression from what leaves the device to the pixels.

        x_hat = m_x + (z - m_z) W,    W = (Z^T Z + a s I)^-1 Z^T X,    s = trace(Z^T Z) / D

    with the rows of Z and X centred at their means m and a the relative regularisation with the smallest error on
    held-out images. Solved in float64 through an eigendecomposition, D x D or, with fewer rows than features, in the
    dual form n x n. Values outside [0, 1] are clipped. It is the best attack of all where feature and image are jointly
    Gaussian, and its error is an upper bound on what any converged attack should reach.
    """

    name: ClassVar[str] = "ridge"

    def __init__(self, config: RidgeConfig | None = None) -> None:
        super().__init__(config or RidgeConfig())
        self.linear: Linear | None = None
        self.strength = float("nan")
        self._shape: tuple[int, ...] = ()

    def fit(
        self,
        observer: Observer,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Self:
        """Solve. Takes seconds, so there is no state to resume from."""
        cfg: RidgeConfig = self.config
        began = time.monotonic()
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        shown, seen = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        errors: list[float] = []
        best: Linear | None = None
        for candidate in linear_path(observer, learn, cfg, _STRENGTHS):
            x_hat = candidate(seen).clamp(0, 1).reshape(shown.shape)
            error = float(mse(shown, x_hat).double().mean())
            if not errors or error < min(errors):
                best = candidate
            errors.append(error)
        assert best is not None
        self.linear, self._shape = best, observer.image_shape
        self.strength = _STRENGTHS[errors.index(min(errors))]
        self.seconds = time.monotonic() - began
        reason = f"closed form, regularisation {self.strength:g} chosen on {len(judge)} images"
        self.outcome = Fit(True, reason, min(errors))
        if progress is not None:
            progress(1, 1, {"mse": min(errors), "held_out_mse": min(errors)})
        return self

    @torch.no_grad()
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) released features -> (N, C, H, W) in [0, 1]."""
        if self.linear is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return self.linear(z.float()).clamp(0, 1).reshape(len(z), *self._shape)

    def weights(self) -> dict[str, Tensor]:
        """Slope and offset of the linear map."""
        if self.linear is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return {"slope": self.linear.slope, "offset": self.linear.offset}


def linear_path(
    observer: Observer, indices: Tensor, config: RidgeConfig, strengths: Sequence[float]
) -> Iterator[Linear]:
    """The linear attacks of these strengths that learn from the images at `indices`, each released `draws` times."""
    noise = generator(config.seed, "ridge", device=observer.device)
    dimension = math.prod(observer.feature_shape)
    if min(dimension, config.draws * len(indices)) > config.size:
        indices = indices[: config.size]
    draws = config.draws if dimension <= config.size else max(1, min(config.draws, config.size // len(indices)))
    batches = (observer.pairs(part, noise) for _ in range(draws) for part in indices.split(1024))
    rows = ((z.flatten(1), x.flatten(1)) for x, z in batches)
    if dimension <= draws * len(indices):
        return primal_path(rows, strengths)
    z, x = (torch.cat(part) for part in zip(*rows, strict=True))
    return dual_path(z, x, strengths)


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
