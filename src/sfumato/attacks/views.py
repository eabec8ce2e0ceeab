"""Further images that an attacker can make from those it has, and have encoded: mirrored and shifted ones."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["VIEWS", "Views", "view"]

Views = Literal["none", "flip", "flip+shift"]
VIEWS: tuple[Views, ...] = get_args(Views)

_SHIFT = 8  # an image is shifted by at most this part of its side


def view(x: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) -> (n, C, H, W), mirrored with probability 1/2 and shifted by up to an eighth of their side.

    What a shift uncovers is filled with the image's mirror image, so that no black border teaches the attack anything.
    """
    if views == "none":
        return x
    n, device = len(x), x.device
    mirrored = torch.randint(2, (n,), generator=generator, device=generator.device).to(device).bool()
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    height, width = x.shape[2:]
    most = min(height, width) // _SHIFT
    if views == "flip" or most == 0:
        return x
    down, right = torch.randint(2 * most + 1, (2, n), generator=generator, device=generator.device).to(device)
    padded = F.pad(x, (most, most, most, most), mode="reflect")
    rows = (down[:, None] + torch.arange(height, device=device))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width, device=device))[:, None, None, :]
    image = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=device)[None, :, None, None]
    return padded[image, channel, rows, columns]
