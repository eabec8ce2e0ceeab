"""The noise on the wire as one object: white, one level per coordinate, or any covariance through a factor."""

import hashlib
import math
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import ConfigError

__all__ = ["Noise"]

_NOTHING = 1e-6  # of the largest singular value of a factor: float32 knows no finer direction
_NEGATIVE = 1e-6  # of the largest eigenvalue: what rounding makes of 0


class Noise:
    r"""`eps ~ N(0, Sigma_p)` with `Sigma_p = diag(s)^2 + L L^T`, on a feature flattened row-major to D values.

        s a number, no L      white, s^2 I: a defence of the same strength in every direction
        s (D,), no L          diagonal
        s = 0, L (D, D)       any covariance; L (D, r) with r < D leaves D - r directions without noise
        s > 0, L (D, r)       low rank and diagonal, for a D whose D x D matrix would be too large

    Drawing costs D + r normal numbers and one product with L. What is drawn is decided by the float32 values of s and
    L, which are also those that a bundle carries to the device (`array`, `digest`).

    A direction without noise shows the feature as it is: nothing is certified, and what needs `Sigma_p^-1` refuses.

    Args:
        std: s, standard deviation of the independent part: a number, or (D,) numbers of at least 0; beside a factor
            either 0 or positive everywhere.
        factor: L (D, r), or None.

    Raises:
        ConfigError: NaN or infinity, a negative standard deviation, or shapes that do not fit; in every method that
            takes features or their D, features of another size.

    >>> noise = Noise(0.0, torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    >>> noise.covariance(2)
    tensor([[4., 2.],
            [2., 2.]], dtype=torch.float64)
    >>> print(f"{noise.log_det(2):.4f}")  # log 4
    1.3863
    """

    def __init__(self, std: float | Tensor = 0.0, factor: Tensor | None = None) -> None:
        plain = isinstance(std, int | float) and not isinstance(std, bool)
        if not plain and not (isinstance(std, Tensor) and std.ndim == 1 and len(std)):
            what = f"a tensor {tuple(std.shape)}" if isinstance(std, Tensor) else repr(std)
            raise ConfigError(
                f"the noise's standard deviation is {what}; give a number, or one for each coordinate (D,)"
            )
        self.std: float | Tensor = float(std) if plain else std.detach().float().cpu()  # type: ignore[union-attr]
        values = torch.as_tensor(self.std)
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise ConfigError(
                f"noise_std is {std!r}; give a finite standard deviation of at least 0"
                if plain
                else "the noise's standard deviations hold NaN, infinite or negative values; give finite ones"
            )
        self.factor = factor
        if factor is None:
            return
        if (
            not isinstance(factor, Tensor)
            or factor.ndim != 2
            or not factor.numel()
            or not bool(factor.isfinite().all())
        ):
            what = f"{tuple(factor.shape)}" if isinstance(factor, Tensor) else type(factor).__name__
            raise ConfigError(f"the noise's factor is {what}; give a finite matrix L (D, r) with Sigma_p = L L^T")
        self.factor = factor.detach().float().cpu().contiguous()
        if not plain and len(values) != len(factor):
            raise ConfigError(f"the noise has {len(values)} standard deviations beside a factor of {len(factor)} rows")
        if bool((values > 0).any()) and not bool((values > 0).all()):
            raise ConfigError("beside a factor the standard deviations are all 0 or all positive; add a small number")

    @classmethod
    def of(cls, value: "float | Tensor | Noise") -> "Noise":
        """A number is white noise, (D,) standard deviations, (D, r) a factor; a `Noise` is itself."""
        if isinstance(value, Noise):
            return value
        if isinstance(value, Tensor) and value.ndim == 2:
            return cls(0.0, value)
        return cls(float(value) if isinstance(value, Tensor) and value.ndim == 0 else value)

    @classmethod
    def from_covariance(cls, covariance: Tensor) -> Self:
        """The noise of a covariance (D, D), through its symmetric root.

        Raises:
            ConfigError: it is not a finite, symmetric, positive semi-definite matrix.

        >>> print(f"{Noise.from_covariance(torch.diag(torch.tensor([4.0, 9.0]))).rms ** 2:.2f}")
        6.50
        """
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not bool(covariance.isfinite().all()):
            raise ConfigError(f"the noise's covariance is {tuple(covariance.shape)}; give a finite matrix (D, D)")
        wide = covariance.detach().double().cpu()
        if not torch.allclose(wide, wide.T, rtol=0, atol=1e-4 * float(wide.abs().max())):
            raise ConfigError(
                "the noise's covariance is not symmetric; pass (S + S.T) / 2 if only rounding is in the way"
            )
        values, axes = torch.linalg.eigh((wide + wide.T) / 2)
        # Rounding makes small negative eigenvalues of 0; anything larger was no covariance.
        if float(values[0]) < -_NEGATIVE * max(float(values[-1]), 0.0) or float(values[-1]) < 0:
            raise ConfigError(
                f"the noise's covariance has the eigenvalue {float(values[0]):.3g}, so it is not positive semi-definite"
                "; compute it in float64, or set negative eigenvalues to 0"
            )
        return cls(0.0, (axes * values.clamp(min=0).sqrt()) @ axes.T)

    @classmethod
    def from_bytes(cls, data: bytes, rank: int) -> Self:
        """What `array` holds, from its bytes.

        Raises:
            ConfigError: they are no array of rank + 1 columns.
        """
        if rank < 0 or not data or len(data) % (4 * (rank + 1)):
            raise ConfigError(f"{len(data)} bytes hold no noise of rank {rank}")
        values = torch.from_numpy(np.frombuffer(data, "<f4").reshape(-1, rank + 1).astype(np.float32))
        std: float | Tensor = values[:, 0] if not rank or bool(values[:, 0].any()) else 0.0
        return cls(std, values[:, 1:] if rank else None)

    @property
    def white(self) -> bool:
        """Whether it is `std^2 I`, for features of any size."""
        return self.factor is None and not isinstance(self.std, Tensor)

    @property
    def dim(self) -> int | None:
        """D; None where it is white and fits every feature."""
        if self.factor is not None:
            return len(self.factor)
        return len(self.std) if isinstance(self.std, Tensor) else None

    @property
    def rank(self) -> int:
        """r, the columns of the factor; 0 where there is none."""
        return 0 if self.factor is None else self.factor.shape[1]

    @cached_property
    def rms(self) -> float:
        """`sqrt(trace(Sigma_p) / D)`: the standard deviation of a coordinate; s where the noise is white."""
        return self.std if self.white else math.sqrt(float(self._variances.mean()))  # type: ignore[return-value]

    @cached_property
    def widest(self) -> float:
        """The largest standard deviation of a coordinate."""
        return self.std if self.white else math.sqrt(float(self._variances.max()))  # type: ignore[return-value]

    @cached_property
    def smallest(self) -> float:
        """Standard deviation in the direction with the least noise, or a lower bound on it beside a factor and s > 0.

        `|Sigma_p^-1/2 z| <= |z| / smallest`: what holds for white noise of this level holds for this noise.
        """
        if self.factor is not None and not self._has_std:
            values = self._svd[1]
            return float(values[-1]) if len(values) == self.dim else 0.0
        # L L^T only adds noise: beside a factor the least of s is a lower bound.
        return float(self._wide.min())

    @property
    def singular(self) -> bool:
        """Whether there is a direction without noise, in which the feature is sent as it is."""
        return self.smallest == 0

    def scaled(self, by: float) -> "Noise":
        """`by eps`: of K averaged releases with by = 1 / sqrt(K)."""
        return Noise(self.std * by, None if self.factor is None else self.factor * by)

    def unit(self) -> "Noise":
        """The same shape at `rms` 1; white where there is no noise."""
        if self.white or self.rms == 0:
            return Noise(1.0)
        return self.scaled(1 / self.rms)

    def fits(self, dim: int) -> None:
        """Refuse features of another size.

        Raises:
            ConfigError: the noise is of another D.
        """
        if self.dim is not None and self.dim != dim:
            raise ConfigError(
                f"the noise has a shape for features of {self.dim} values, and this feature has {dim}; make the noise "
                "for the cut at hand"
            )

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """eps of z's shape (N, ...), type and device.

        Args:
            z: features.
            generator: of the normal numbers; it may live on another device than z.
        """
        where = z.device if generator is None else generator.device

        def normals(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=where, dtype=z.dtype).to(z.device)

        if self.white:
            return self.std * normals(*z.shape)
        rows = z.flatten(1)
        self.fits(rows.shape[1])
        drawn = self._wide.to(z) * normals(*rows.shape) if self._has_std else torch.zeros_like(rows)
        if self.factor is not None:
            drawn = drawn + normals(len(rows), self.rank) @ self.factor.to(z).T
        return drawn.reshape(z.shape)

    def covariance(self, dim: int) -> Tensor:
        """Sigma_p, (D, D) float64."""
        self.fits(dim)
        found = self._wide.square().expand(dim).diag()
        return found if self.factor is None else found + self.factor.double() @ self.factor.double().T

    def spread(self, dim: int) -> Tensor:
        """Standard deviations of the coordinates, the root of the diagonal of Sigma_p, (D,) float64."""
        self.fits(dim)
        return (self._wide if self.factor is None else self._variances.sqrt()).expand(dim)

    def coordinates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, D) in axes in which the noise is independent, (n, E), and its standard deviations (E,) there.

        Directions without noise are among the axes, with standard deviation 0. Distances in units of the noise,
        `(a - b)^T Sigma_p^-1 (a - b)`, are those in these axes divided by their standard deviations.
        """
        self.fits(rows.shape[1])
        std = self._wide.to(rows)
        if self.factor is None:
            return rows, std.expand(rows.shape[1])
        axes, values = (part.to(rows) for part in self._svd)
        if self._has_std:
            rows = rows / std
            # (I + U S^2 U^T)^-1/2 = I + U ((1 + S^2)^-1/2 - 1) U^T: a correction in r directions, and no D x D matrix.
            gain = (1 + values.square()).rsqrt() - 1
            return rows + (rows @ axes * gain) @ axes.T, torch.ones_like(rows[0])
        inside = rows @ axes
        if not self.singular:
            return inside, values
        left = rows - inside @ axes.T
        return torch.cat([inside, left], 1), torch.cat([values, torch.zeros_like(left[0])])

    def whiten(self, z: Tensor) -> Tensor:
        """(N, ...) -> (N, D) in units of the noise, `A z` with `A^T A = Sigma_p^-1`; differentiable.

        Raises:
            ConfigError: a direction has no noise.
        """
        if self.singular:
            raise ConfigError(
                "the noise leaves directions without noise: the information is infinite, and nothing can be certified; "
                "add a little white noise"
            )
        if self.white:
            return z.flatten(1) / self.std
        rows, std = self.coordinates(z.flatten(1))
        return rows / std

    def log_det(self, dim: int) -> float:
        """`log |Sigma_p|` in nats; minus infinity where a direction has no noise."""
        self.fits(dim)
        if self.singular:
            return -math.inf
        # |Sigma_p| = |diag(s)|^2 |I + U S^2 U^T|; log1p keeps what a faint factor adds.
        logs = self._wide.expand(dim).log().sum() if self._has_std else 0.0
        if self.factor is not None:
            values = self._svd[1]
            logs = logs + (values.square().log1p() / 2 if self._has_std else values.log()).sum()
        return 2 * float(logs)

    def array(self, dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(D, 1 + r) float32: s, then L. What a bundle carries, and what `digest` is of."""
        self.fits(dim)
        std = torch.as_tensor(self.std, dtype=torch.float32).expand(dim)[:, None]
        columns = std if self.factor is None else torch.cat([std, self.factor], 1)
        return np.ascontiguousarray(columns.numpy(), "<f4")

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 of `array` in hexadecimal digits, by which an audit knows the noise; None where it is white."""
        return None if self.dim is None else hashlib.sha256(self.array(self.dim).tobytes()).hexdigest()

    def store(self, state: dict[str, Any], key: str) -> None:
        """Put a shape into a module's state dict; white noise is a setting, and no state."""
        if self.dim is not None:
            state[key] = torch.from_numpy(self.array(self.dim))

    @classmethod
    def stored(cls, state: dict[str, Any], key: str) -> Self | None:
        """Take what `store` put there out of a state dict; None where there is none.

        Raises:
            ConfigError: it is no array of a noise.
        """
        found = state.pop(key, None)
        if found is None:
            return None
        if found.ndim != 2 or not found.is_floating_point():
            raise ConfigError(f"the stored noise is {found.dtype} of shape {tuple(found.shape)}, not (D, 1 + r)")
        return cls.from_bytes(found.cpu().float().numpy().astype("<f4").tobytes(), found.shape[1] - 1)

    def __repr__(self) -> str:
        if self.white:
            return f"Noise({self.std:g})"
        return f"Noise(rms={self.rms:g}, dim={self.dim}, rank={self.rank}, digest={self.digest})"

    @property
    def _wide(self) -> Tensor:
        return torch.as_tensor(self.std, dtype=torch.float64)

    @property
    def _has_std(self) -> bool:
        return bool(self._wide.any())

    @cached_property
    def _variances(self) -> Tensor:
        own = self._wide.square()
        return own if self.factor is None else own + self.factor.double().square().sum(1)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor]:
        """Axes (D, q) and singular values of L, or of L in units of s, as far as they are not rounding."""
        assert self.factor is not None
        wide = self.factor.double()
        # In units of s the covariance is I + U S^2 U^T, whose root and determinant need only U and S.
        if self._has_std:
            wide = wide / self._wide.expand(len(wide))[:, None]
        axes, values, _ = torch.linalg.svd(wide, full_matrices=False)
        kept = values > _NOTHING * values[0]
        return axes[:, kept], values[kept]
