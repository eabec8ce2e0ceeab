"""One input sent more than once: what leaves the device, with fresh noise and with memoised noise."""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sfumato.attacks.duplicates import Duplicates, near_duplicates
from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.split import SplitModel

__all__ = ["Duplicates", "Noise", "Queries", "aggregate", "encode_repeated"]

Noise = Literal["fresh", "memoised"]


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
    """

    queries: int = 1
    noise: Noise = "fresh"
    duplicates: Duplicates = "exact"

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ConfigError(f"queries is {self.queries}; give at least 1")
        for value, known in ((self.noise, get_args(Noise)), (self.duplicates, get_args(Duplicates))):
            if value not in known:
                raise ConfigError(f"unknown kind of queries {value!r}; choose one of {', '.join(known)}")

    @property
    def noise_factor(self) -> float:
        """By what the noise shrinks in the mean of all answers: 1 / sqrt(K), or 1 where each repeats the first."""
        repeats = self.noise == "memoised" and self.duplicates == "exact"
        return 1.0 if repeats else float(self.queries) ** -0.5


@torch.no_grad()
def encode_repeated(
    model: SplitModel,
    x: Tensor,
    *,
    queries: int,
    noise: Noise = "fresh",
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
    """
    plan = Queries(queries, noise, duplicates)
    with evaluating(model):
        return _answers(model, x, plan, generator, key).float()


def _answers(model: SplitModel, x: Tensor, plan: Queries, generator: torch.Generator | None, key: bytes) -> Tensor:
    queries = plan.queries
    if plan.duplicates in ("exact", "devices"):
        z_hat = model.features(x)
        if plan.noise == "fresh":
            released = [model.channel.release(z_hat, generator) for _ in range(queries)]
        elif plan.duplicates == "exact":
            released = [_memoised(model, x, z_hat, key)] * queries
        else:
            released = [_memoised(model, x, z_hat, key + number.to_bytes(4, "big")) for number in range(queries)]
        return torch.stack(released, 1)
    variants = near_duplicates(x, queries, plan.duplicates, generator)
    if plan.noise == "fresh":
        released = [model.encode(variants[:, number], generator) for number in range(queries)]
    else:
        released = [_memoised(model, one, model.features(one), key) for one in variants.unbind(1)]
    return torch.stack(released, 1)


def aggregate(z: Tensor) -> Tensor:
    """(n, K, ...) -> (n, ...), the mean over the queries: of all the answers to one image under Gaussian noise it
    says as much as they do together.
    """
    return z.mean(1)


def _memoised(model: SplitModel, x: Tensor, z_hat: Tensor, key: bytes) -> Tensor:
    """Release every feature with the noise that belongs to (key, pixels)."""
    pixels = (x * 255).round().to(torch.uint8).cpu().contiguous().numpy()
    released = []
    for image, feature in zip(pixels, z_hat.split(1), strict=True):
        digest = hmac.new(key, image.tobytes(), hashlib.sha256).digest()
        seeded = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        released.append(model.channel.release(feature, seeded))
    return torch.cat(released)
