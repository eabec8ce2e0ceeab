"""Random crops, flips and rotations of whole batches, on the device where the images lie."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import ConfigError, DataError
from sfumato.settings import check_settings

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Turn a batch of stored pixels into a batch to learn from.

    Each image is shifted by dy and dx pixels, uniform over the integers -pad .. pad (a random crop of the zero-padded
    image), mirrored left to right with probability 1/2 if `flip`, and turned about its centre by an angle uniform in
    -rotation .. rotation degrees. Pixels from outside the image are 0. Shifts and flips move pixels exactly; with
    `rotation` > 0 all three happen in one bilinear sampling, so that the image is interpolated only once.

    The generator is asked for dy, dx (n integers each, if pad > 0), flips (n integers, if flip) and angles
    (n floats, if rotation > 0), in this order: the batch depends on nothing else.
    `Augmentation(pad=0, flip=False)` only divides by 255.

    Attributes:
        pad: largest shift in pixels.
        flip: whether to mirror.
        rotation: largest angle in degrees.

    Raises:
        ConfigError: `pad` is negative or `rotation` outside 0 .. 180, or a value of another type.

    >>> images = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    >>> Augmentation(pad=0)(images, torch.Generator().manual_seed(0)).mean()
    tensor(0.2000)
    """

    pad: int = 4
    flip: bool = True
    rotation: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.pad < 0:
            raise ConfigError(f"pad is {self.pad}; give the largest shift in pixels, 0 or more")
        if not 0 <= self.rotation <= 180:
            raise ConfigError(f"rotation is {self.rotation}; give the largest angle in degrees, 0 .. 180")

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8, (N, C, H, W).
            generator: source of all randomness, on the device of `images` (or on the CPU, which costs a transfer).
            memory_format: of the result.

        Returns:
            float32 in [0, 1], (N, C, H, W).

        Raises:
            DataError: `images` is not a uint8 batch.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; give uint8 of shape (N, C, H, W)"
            )
        n, device = len(images), images.device

        def integers(high: int) -> Tensor:
            return torch.randint(high, (n,), generator=generator, device=generator.device).to(device)

        nothing = torch.zeros(n, dtype=torch.int64, device=device)
        dy = integers(2 * self.pad + 1) - self.pad if self.pad else nothing
        dx = integers(2 * self.pad + 1) - self.pad if self.pad else nothing
        mirrored = integers(2) == 1 if self.flip else nothing.bool()
        if self.rotation and n:  # an empty batch has no grid to sample
            unit = torch.rand(n, generator=generator, device=generator.device).to(device)
            angle = (2 * unit - 1) * math.radians(self.rotation)
            return _sample(images, dy, dx, mirrored, angle).contiguous(memory_format=memory_format)
        if self.pad or self.flip:
            images = _move(images, dy, dx, mirrored, self.pad)
        return images.to(torch.float32, memory_format=memory_format).div_(255)


def _move(images: Tensor, dy: Tensor, dx: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """out[n, c, y, x] = images[n, c, y + dy, x' + dx] with x' = W - 1 - x where mirrored, else x; 0 outside."""
    n, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    rows = y + (dy + pad)[:, None]
    columns = torch.where(mirrored[:, None], width - 1 - x, x) + (dx + pad)[:, None]
    index = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    index = index.view(n, 1, height * width).expand(n, channels, height * width)
    return padded.flatten(2).gather(2, index).view(n, channels, height, width)


def _sample(images: Tensor, dy: Tensor, dx: Tensor, mirrored: Tensor, angle: Tensor) -> Tensor:
    """`_move` with a rotation by `angle` (counter-clockwise, as seen) after it, in one bilinear sampling.

    About the centre, in pixels and with y pointing down, the output pixel (x, y) shows the moved image at
    (x cos a - y sin a, x sin a + y cos a), and the moved image at (x, y) shows the original at (s x + dx, y + dy),
    s = -1 where mirrored. `affine_grid` wants this in units of half the image's sides.
    """
    height, width = images.shape[2:]
    sign = 1 - 2 * mirrored.to(torch.float32)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([sign * cos, -sign * sin * (height / width), dx * (2 / width)], dim=1),
            torch.stack([sin * (width / height), cos, dy * (2 / height)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = F.grid_sample(images.to(torch.float32).div_(255), grid, padding_mode="zeros", align_corners=False)
    return sampled.clamp_(0, 1)  # rounding of the bilinear weights may exceed 1 by an ulp
