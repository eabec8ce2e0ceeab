"""What happens to the feature before it leaves the device: transform, clip, drop, add noise, quantise."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.noise import Noise

__all__ = ["Channel"]

_MAX_BITS = 16  # float32 represents the levels of a finer grid only with rounding


class Channel(nn.Module):
    """edge output -> transforms -> clip -> z_hat -> random transforms -> + N(0, Sigma_p) -> quantise -> z.

    In symbols, for one sample with flattened transformed feature f:

        z_hat = f * min(1, R / |f|_2)
        z     = Q(S(z_hat) + eps),   eps ~ N(0, Sigma_p),   Sigma_p = sigma^2 I unless `noise` says otherwise

    z_hat is a deterministic function of the input (the paper's Proposition 2), everything random comes after it, and z
    is what leaves the device. R = `clip_norm`, sigma = `noise_std`, S stands for the stochastic transforms, and Q
    rounds to the nearest of 2^b equidistant levels from `low - 4 sigma` to `high + 4 sigma`, b = `quantize_bits`, with
    the sigma of the noisiest coordinate.
    Values outside become the outermost level. The steps are the same in training and in inference. With the default
    arguments the channel changes nothing.

    bfloat16 and float16 features are widened to float32 first: a noise drawn in half precision is not Gaussian in its
    low bits, and a sum rounded to half precision loses most of a small noise. The clip holds up to float32 rounding,
    a relative 1e-6.

    A transform is a module `feature -> feature` that a defence contributes. A transform that draws random numbers
    declares `stochastic = True`, acts on z_hat and is called as `transform(z_hat, generator=generator)`, so that one
    seed decides the whole release; its result is clipped again. Information bounds for z_hat + eps hold for z as long
    as S only takes away (a random mask does: given the mask, z is a part of z_hat + eps), not if it amplifies. One that
    also offers `with_uniform(feature, uniform)`, which does the same with numbers in [0, 1) of the feature's shape that
    were drawn elsewhere, can be exported.

    NaN or infinite features come out as NaN: a broken encoder stays visible, it is neither clipped nor rounded away.

    Args:
        noise_std: standard deviation sigma >= 0 of the noise on every coordinate; 0 adds none.
        noise: the noise in the place of `noise_std`: a standard deviation, one for each coordinate (D,), a factor L
            (D, r) of the covariance `L L^T`, or a `sfumato.Noise`.
        clip_norm: radius R > 0 of the L2 ball that holds every z_hat; None does not clip.
        quantize_bits: bits b per coordinate, 1 to 16; None does not quantise. The gradient passes straight through.
        low: smallest value of the noiseless feature, as the encoder promises it (0 for a sigmoid).
        high: largest value of the noiseless feature.
        transforms: modules, applied in this order, the deterministic ones before the stochastic ones.

    Attributes:
        noise: of the channel, a `sfumato.Noise`.

    Raises:
        ConfigError: a setting is out of its range.

    >>> channel = Channel(clip_norm=1.0, noise_std=0.5)
    >>> channel.bound(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    >>> channel.release(torch.zeros(10_000, 4), torch.Generator().manual_seed(0)).std().round(decimals=2)
    tensor(0.5000)
    """

    def __init__(
        self,
        *,
        noise_std: float = 0.0,
        noise: float | Tensor | Noise | None = None,
        clip_norm: float | None = None,
        quantize_bits: int | None = None,
        low: float = 0.0,
        high: float = 1.0,
        transforms: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        if not _is_number(noise_std) or noise_std < 0:
            raise ConfigError(f"noise_std is {noise_std!r}; give a finite standard deviation of at least 0")
        if noise is not None and noise_std != 0:
            raise ConfigError("noise and noise_std exclude each other; give one of them")
        if clip_norm is not None and (not _is_number(clip_norm) or clip_norm <= 0):
            raise ConfigError(f"clip_norm is {clip_norm!r}; give a finite radius above 0, or None not to clip")
        if quantize_bits is not None and (type(quantize_bits) is not int or not 1 <= quantize_bits <= _MAX_BITS):
            raise ConfigError(
                f"quantize_bits is {quantize_bits!r}; give a whole number from 1 to {_MAX_BITS}, "
                "or None not to quantise"
            )
        if not _is_number(low) or not _is_number(high) or low >= high:
            raise ConfigError(f"the feature's range is [{low!r}, {high!r}]; give finite numbers with low below high")
        stages = list(transforms)
        for stage in stages:
            if not isinstance(stage, nn.Module):
                raise ConfigError(f"a transform is a {type(stage).__name__}; wrap it in a torch.nn.Module")
        self.noise = Noise.of(noise_std if noise is None else noise)
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.quantize_bits = quantize_bits
        self.low = float(low)
        self.high = float(high)
        self.transforms = nn.ModuleList(stages)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on a coordinate, the root mean square over them where it has a shape."""
        return self.noise.rms

    @noise_std.setter
    def noise_std(self, std: float) -> None:
        self.noise = Noise(std)

    @property
    def quantization_range(self) -> tuple[float, float]:
        """The lowest and the highest level of the quantiser, `(low - 4 sigma, high + 4 sigma)`."""
        return self.low - 4.0 * self.noise.widest, self.high + 4.0 * self.noise.widest

    def bound(self, edge_output: Tensor) -> Tensor:
        """The transformed and clipped feature z_hat, without anything random.

        Args:
            edge_output: (N, ...) output of the encoder, floating point.

        Returns:
            (N, ...) z_hat; with a clip norm every sample has |z_hat|_2 <= R.

        Raises:
            FeatureError: the encoder's output is not a batch of floating-point features.
        """
        if not isinstance(edge_output, Tensor) or not edge_output.is_floating_point() or edge_output.ndim < 2:
            raise FeatureError(
                f"the encoder gave {_describe(edge_output)}; it has to give one floating-point tensor (N, ...)"
            )
        feature = edge_output.float() if edge_output.dtype in (torch.bfloat16, torch.float16) else edge_output
        for transform in self.transforms:
            if not getattr(transform, "stochastic", False):
                feature = transform(feature)
        return feature if self.clip_norm is None else _clip(feature, self.clip_norm)

    def release(self, z_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What leaves the device: z_hat through the stochastic transforms, plus fresh noise, quantised.

        Args:
            z_hat: (N, ...) bounded feature.
            generator: source of all randomness; None uses torch's global one. A generator may live on the CPU while the
                feature is on another device: then it gives the same noise on every device.

        Returns:
            (N, ...) z, differentiable with respect to z_hat (with gradient 1 where no transform acts).
        """
        z = z_hat
        for transform in self.stochastic_transforms:
            z = transform(z, generator=generator)
            z = z if self.clip_norm is None else _clip(z, self.clip_norm)
        if self.noise_std > 0:
            z = z + self.noise.sample(z, generator)
        return z if self.quantize_bits is None else _quantize(z, self.quantize_bits, *self.quantization_range)

    @property
    def stochastic_transforms(self) -> list[nn.Module]:
        """The transforms that draw random numbers, in their order."""
        return [transform for transform in self.transforms if getattr(transform, "stochastic", False)]

    def forward(self, edge_output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`release(bound(edge_output))`."""
        return self.release(self.bound(edge_output), generator)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.noise.store(destination, prefix + "noise")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.noise = Noise.stored(state_dict, prefix + "noise") or self.noise
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        noise = f"noise_std={self.noise_std}" if self.noise.white else f"noise={self.noise}"
        return (
            f"{noise}, clip_norm={self.clip_norm}, quantize_bits={self.quantize_bits}, low={self.low}, high={self.high}"
        )


def _clip(feature: Tensor, radius: float) -> Tensor:
    norm = torch.linalg.vector_norm(feature.flatten(1), dim=1)
    # Dividing by max(norm, R) instead of taking min(1, R / norm) keeps value and gradient finite at the zero vector.
    scale = radius / norm.clamp_min(radius)
    return feature * scale.reshape(-1, *(1,) * (feature.ndim - 1))


def _quantize(z: Tensor, bits: int, lowest: float, highest: float) -> Tensor:
    steps = 2**bits - 1
    width = (highest - lowest) / steps
    values = z.detach()
    levels = ((values - lowest) / width).round().clamp(0, steps) * width + lowest
    # z - values is exactly 0, so the sum is exactly a level; z + (levels - z) would leave rounding residue of z in it.
    return levels + (z - values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _describe(value: object) -> str:
    return f"a {value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
