"""One input, or images that look the same, sent more than once, with fresh or memoised noise."""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.settings import check_settings
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["Duplicates", "Queries", "Repeating", "encode_repeated", "near_duplicates"]

Repeating = Literal["fresh", "memoised"]
Duplicates = Literal["exact", "levels", "shift", "recode", "devices"]

_SHIFTS = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
_BEST_QUALITY, _WORST_QUALITY = 98, 35


@dataclass(frozen=True)
class Queries:
    """How often and in which form an attacker has one input sent.

    Attributes:
        queries: how often, K.
        noise: `fresh` noise for every query, or `memoised`: derived from the device's key and the input's digest, so
            that an exact repeat on one device repeats its noise.
        duplicates: `exact` repeats, `levels` (random pixels one grey level up or down), `shift` (by one pixel),
            `recode` (JPEG at falling quality), `devices` (the exact image on K devices with keys of their own).

    Raises:
        ConfigError: a value is out of its range.

    >>> Queries(16, "memoised", "levels").queries
    16
    """

    queries: int = 1
    noise: Repeating = "fresh"
    duplicates: Duplicates = "exact"

    def __post_init__(self) -> None:
        check_settings(self, least={"queries": 1})

    @property
    def noise_factor(self) -> float:
        """By what the noise shrinks in the mean of all answers: `1 / sqrt(K)` where each meets noise of its own.

        Memoised noise comes back where the same pixels are sent again: always with exact repeats, and after 9 shifts or
        65 qualities. `sqrt(sum_i n_i^2) / K` with n_i answers of the i-th noise.

        >>> Queries(16).noise_factor, Queries(16, "memoised").noise_factor
        (0.25, 1.0)
        """
        different = {"exact": 1, "shift": len(_SHIFTS), "recode": 2 + _BEST_QUALITY - _WORST_QUALITY}
        most = self.queries if self.noise == "fresh" else different.get(self.duplicates, self.queries)
        kinds = min(most, self.queries)
        times, more = divmod(self.queries, kinds)
        return float((more * (times + 1) ** 2 + (kinds - more) * times**2) ** 0.5 / self.queries)


@torch.no_grad()
def encode_repeated(
    model: SplitModel,
    x: Tensor,
    *,
    queries: int,
    noise: Repeating = "fresh",
    duplicates: Duplicates = "exact",
    generator: torch.Generator | None = None,
    key: bytes = b"device",
) -> Tensor:
    """What leaves the device when every image is sent K times.

    The memoised noise is a software model of a device that draws its noise from a keyed pseudo-random function:
    HMAC-SHA-256 of the image's 8-bit pixels under the device's key seeds the draw. It shows what repeating the noise
    does to an attack; it is not the generator that protects a real device.

    Args:
        model: the victim; it runs in evaluation mode.
        x: (n, C, H, W) images in [0, 1].
        queries: K >= 1; the first query is the image itself.
        noise: see `Queries`.
        duplicates: see `Queries`. Of one-pixel shifts there are nine; more queries repeat them.
        generator: source of fresh noise and of the duplicates.
        key: the device's key; further devices have keys derived from it.

    Returns:
        (n, K, ...) released features in float32.

    Raises:
        ConfigError: see `Queries`.

    >>> import sfumato
    >>> model = SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.5), torch.nn.Identity())
    >>> z = encode_repeated(model, torch.zeros(1000, 1, 2, 2), queries=25, generator=torch.Generator().manual_seed(0))
    >>> print(tuple(z.shape), f"{z.std():.2f} {z.mean(1).std():.2f}")  # sigma, and sigma / sqrt(25)
    (1000, 25, 4) 0.50 0.10
    """
    Queries(queries, noise, duplicates)  # refuses what makes no sense
    with evaluating(model):
        if duplicates in ("exact", "devices"):
            # The encoder runs once, however often its feature is released.
            variants = [(x, model.features(x))] * queries
        else:
            variants = [
                (one, model.features(one)) for one in near_duplicates(x, queries, duplicates, generator).unbind(1)
            ]
        released = []
        for number, (image, z_hat) in enumerate(variants):
            if noise == "fresh":
                released.append(model.channel.release(z_hat, generator))
            elif duplicates == "exact" and released:
                released.append(released[0])
            else:
                device = key + number.to_bytes(4, "big") if duplicates == "devices" else key
                released.append(_memoised(model, image, z_hat, device))
        return torch.stack(released, 1).float()


def _memoised(model: SplitModel, x: Tensor, z_hat: Tensor, key: bytes) -> Tensor:
    """Release every feature with the noise that belongs to (key, pixels)."""
    pixels = (x * 255).round().to(torch.uint8).cpu().contiguous().numpy()
    released = []
    for image, feature in zip(pixels, z_hat.split(1), strict=True):
        digest = hmac.new(key, image.tobytes(), hashlib.sha256).digest()
        # A seed has 63 bits.
        seeded = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        released.append(model.channel.release(feature, seeded))
    return torch.cat(released)


def near_duplicates(x: Tensor, count: int, kind: Duplicates, generator: torch.Generator | None = None) -> Tensor:
    """(n, C, H, W) -> (n, count, C, H, W), the image itself first.

    levels   a random half of the pixels, each one grey level of 8 bits up or down, within 0 .. 255
    shift    by one pixel in the eight directions in turn, the border repeated
    recode   JPEG at quality 98, 97, .. 35 in turn
    """
    first = (x * 255).round()
    (height, width), padded = x.shape[2:], F.pad(first, (1, 1, 1, 1), mode="replicate")
    made = [first]
    for number in range(1, count):
        if kind == "levels":
            device = first.device if generator is None else generator.device
            die = torch.randint(4, first.shape, generator=generator, device=device).to(first.device)
            # A quarter up, a quarter down, and half as they are.
            made.append((first + (die == 0).to(first) - (die == 1).to(first)).clamp(0, 255))
        elif kind == "shift":
            down, right = _SHIFTS[number % len(_SHIFTS)]
            made.append(padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width])
        elif kind == "recode":
            made.append(_recoded(first, _BEST_QUALITY - (number - 1) % (_BEST_QUALITY - _WORST_QUALITY + 1)))
        else:
            made.append(first)
    return torch.stack(made, 1).div_(255)


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
