"""What an attacker makes of a feature before anything else: coordinates without units."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sfumato.noise import Noise

__all__ = ["Whitening", "whiten"]

_DIMENSIONS = 1024
"""Up to so many coordinates the whole covariance is used, else only its diagonal."""

_PER_DIMENSION = 4
"""Images per coordinate from which a covariance can be inverted: with n = 4 D the smallest sample eigenvalue of white
noise is 1/4 instead of 1 (Marchenko and Pastur), with n = D it is 0 and whitening would only fit the sample."""

_FAINTEST = 1e-3  # standard deviation that a coordinate of pure noise keeps: nothing is lost, and nothing drowns in it
_SILENT = 0.02  # without noise a feature is fitted as if the noise were this part of its spread


@dataclass(frozen=True)
class Whitening:
    r"""`w = T (z - m)` for features without units, fitted on an attacker's own images.

        T = M^1/2 C^-1/2,    M = C^-1/2 (C - N) C^-1/2

    with the covariance C of what left the device (data plus noise) and N of the noise alone. `C^-1/2` makes every
    direction equally large; M, whose eigenvalues are the shares of signal in the directions' variances, then shrinks
    those that are mostly noise. C and N change to A C A^T and A N A^T under z -> A z + b, and T (z - m) only by a
    rotation (not at all where A is diagonal), so that what an attack sees does not depend on units.

    Eigenvalues of C, of coordinates standardised before, are floored at machine precision. With more than 1,024
    coordinates, or fewer than 4 images for each, C and N are taken for diagonal: no D x D matrix is needed, and the
    invariance is that under scale, shift and permutation.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64, of each coordinate; the whole of T where it is diagonal.
        mix: (D, D) float64, from the right, after the scale; None where T is diagonal.
        noise: (D,) or (D, D), from the right: w in units of the noise, of which directions without any have 2 % of
            their spread.
        unmix: (D,) or (D, D) float32, from the right: w as coordinates at their places again, each of variance 1.
            Nothing small is enlarged on the way (`C^1/2` has at most the square root of D, and what `M^-1/2` enlarges
            was made small before), so that float32 is precise enough.
    """

    mean: Tensor
    scale: Tensor
    mix: Tensor | None
    noise: Tensor
    unmix: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(n, ...) -> (n, D) float32, differentiable. Differences are taken before anything is rounded."""
        rows = z.flatten(1)
        if self.mix is None:
            return ((rows - self.mean.to(rows.dtype)) * self.scale.to(rows.dtype)).float()
        return (((rows.double() - self.mean) * self.scale) @ self.mix).float()

    def in_noise(self, difference: Tensor) -> Tensor:
        """(n, D) differences of w -> in units of the noise's standard deviation, rotated."""
        return difference * self.noise if self.noise.ndim == 1 else difference @ self.noise

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        found = {f"whitening.{field.name}": getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def whiten(first: Tensor, second: Tensor | None, noise: Noise | float | None) -> Whitening:
    """The whitening of features that were released once or twice.

    Args:
        first: (n, D) what left the device for n images.
        second: the same with fresh noise; its covariance with `first` is that of the signal. None where `noise` is
            known, or where nothing can be encoded again.
        noise: of a Gaussian, or the standard deviation of white noise; None where the noise is of another kind.

    >>> z = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e6, 1e-3])
    >>> whiten(z, None, 0.0)(z).std(0).round(decimals=2)
    tensor([1., 1.])
    """
    draws = [first.double()] if second is None else [first.double(), second.double()]
    mean = torch.stack([one.mean(0) for one in draws]).mean(0)
    draws = [one - mean for one in draws]
    variance = torch.stack([one.square().mean(0) for one in draws]).mean(0)
    largest = torch.stack([one.abs().amax(0) for one in draws]).amax(0) + mean.abs()
    varies = variance.sqrt() > torch.finfo(torch.float64).eps * largest
    # Unit variances first: the eigenvalues below then compare like with like, whatever the units.
    scale = torch.where(varies, variance.rsqrt(), 0.0)
    rows = [one.mul_(scale) for one in draws]
    count, dimension = first.shape
    known = None if noise is None else Noise.of(noise)
    alone = None if known is None else (known.spread(dimension).to(scale) * scale).square()
    if dimension > _DIMENSIONS or count < _PER_DIMENSION * dimension:
        signal = (rows[0] * rows[-1]).mean(0) if alone is None else 1 - alone
        share = signal.clamp(_FAINTEST**2, 1)
        return Whitening(mean, scale * share.sqrt(), None, _per_noise(share).float(), share.rsqrt().float())
    both = torch.stack([one.T @ one for one in rows]).mean(0) / count
    values, axes = torch.linalg.eigh(both)
    floor = dimension * torch.finfo(values.dtype).eps * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    values = values.clamp_min(floor)
    root, back = (axes * values.rsqrt()) @ axes.T, (axes * values.sqrt()) @ axes.T
    if alone is None:
        cross = rows[0].T @ rows[-1] / count
        # Independent draws of the noise share nothing but the signal; of a sample this is not quite symmetric.
        signal = (cross + cross.T) / 2
    elif known is None or known.factor is None:
        signal = both - alone.diag()
    else:
        signal = both - known.covariance(dimension).to(scale) * scale[:, None] * scale
    share, axes = torch.linalg.eigh(root @ signal @ root)
    share = share.clamp(_FAINTEST**2, 1)
    mix = root @ (axes * share.sqrt()) @ axes.T
    unmix = (axes * share.rsqrt()) @ axes.T @ back
    return Whitening(mean, scale, mix, (axes * _per_noise(share)).float(), unmix.float())


def _per_noise(share: Tensor) -> Tensor:
    """What a direction of w with this share of signal is multiplied with, so that its noise is 1."""
    return (share * (1 - share).clamp_min(_SILENT**2)).rsqrt()
