"""Images that look the same and are not: what an attacker sends, or a camera takes, instead of an exact repeat."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Duplicates", "near_duplicates"]

Duplicates = Literal["exact", "levels", "shift", "recode", "devices"]

_SHIFTS = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
_BEST_QUALITY, _WORST_QUALITY = 98, 35


def near_duplicates(x: Tensor, count: int, kind: Duplicates, generator: torch.Generator | None = None) -> Tensor:
    """(n, C, H, W) -> (n, count, C, H, W), the image itself first.

    levels   a random half of the pixels, each one grey level of 8 bits up or down, within 0 .. 255
    shift    by one pixel in the eight directions in turn, the border repeated
    recode   JPEG at quality 98, 97, .. 35 in turn
    """
    first = (x * 255).round()
    made = [first]
    for number in range(1, count):
        if kind == "levels":
            made.append((first + _steps(first, generator)).clamp(0, 255))
        elif kind == "shift":
            made.append(_shifted(first, *_SHIFTS[number % len(_SHIFTS)]))
        elif kind == "recode":
            made.append(_recoded(first, _BEST_QUALITY - (number - 1) % (_BEST_QUALITY - _WORST_QUALITY + 1)))
        else:
            made.append(first)
    return torch.stack(made, 1).div_(255)


def _steps(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    die = torch.randint(4, like.shape, generator=generator, device=device).to(like.device)
    return (die == 0).to(like) - (die == 1).to(like)


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _recoded(x: Tensor, quality: int) -> Tensor:
    import simplejpeg

    n, channels, height, width = x.shape
    grey = channels != 3  # anything but RGB is recoded channel by channel
    planes = x.reshape(-1, 1, height, width) if grey else x
    pixels = np.ascontiguousarray(planes.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    colours = "GRAY" if grey else "RGB"
    decoded = [
        simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, quality=quality, colorspace=colours), colorspace=colours)
        for image in pixels
    ]
    again = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
    return again.reshape(n, channels, height, width).to(x)
