"""How well images were redrawn: one value per image, and what is said of many."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import checkpoint, metrics
from sfumato.attacks import Attack
from sfumato.data import ImageSet
from sfumato.errors import Interrupted
from sfumato.seeds import generator
from sfumato.split import SplitModel

__all__ = [
    "WORST_SHARE",
    "Exposure",
    "Redrawn",
    "expose",
    "mean_image_error",
    "redraw",
    "strongest",
    "summary",
    "tried_on_all",
]

WORST_SHARE = 0.05
"""The share of the images that is called worst: those that are redrawn best."""

_CHUNK = 256
_SEARCHED = 16  # images at a time for an attack that works seconds on each
_MOST_PSNR = 120.0  # of an image redrawn without any error; infinity is not JSON


@dataclass(frozen=True)
class Exposure:
    """Images and what left the device for them, the same for every attack.

    Attributes:
        images: in random order.
        z: (N, ...) released features.
    """

    images: ImageSet
    z: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "Exposure":
        """The first images, a random sample of all."""
        if count >= len(self):
            return self
        return Exposure(self.images.subset(range(count)), self.z[:count])


@dataclass(frozen=True)
class Redrawn:
    """What an attack made of an exposure.

    Attributes:
        mse, psnr, ssim: (N,) per image.
        pixels: (N, C, H, W) uint8, rounded.
    """

    mse: Tensor
    psnr: Tensor
    ssim: Tensor
    pixels: Tensor

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """For a file."""
        return {f"{prefix}.{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, prefix: str, tensors: dict[str, Tensor]) -> "Redrawn":
        """What `tensors` gave."""
        return cls(**{name: tensors[f"{prefix}.{name}"] for name in ("mse", "psnr", "ssim", "pixels")})


@torch.no_grad()
def expose(model: SplitModel, images: ImageSet, *, seed: int, device: torch.device) -> Exposure:
    """What leaves the device for every image, once, with noise that depends on the seed."""
    noise = generator(seed, "audit-noise", device=device)
    parts = [
        model.encode(images.float(indices).to(device), noise).float().cpu()
        for indices in torch.arange(len(images)).split(_CHUNK)
    ]
    return Exposure(images, torch.cat(parts))


def redraw(
    attack: Attack,
    exposure: Exposure,
    device: torch.device,
    *,
    chunk: int = _CHUNK,
    state: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Redrawn:
    """Attack an exposure and measure every image.

    Args:
        attack: a fitted attack.
        exposure: images and what left the device for them.
        device: where to compute.
        chunk: images at a time; attacks that search for every image anew get fewer.
        state: keeps what was redrawn so far, for such attacks; the caller removes it.
        should_stop: asked after every chunk; True leaves.

    Raises:
        Interrupted: `should_stop` said so; the same call goes on from `state`.
    """
    found: dict[str, list[Tensor]] = {"mse": [], "psnr": [], "ssim": [], "pixels": []}
    searching = attack.most_images is not None
    done = 0
    if state is not None and state.exists():
        found = {name: [value] for name, value in checkpoint.load(state)[0].items()}
        done = len(found["mse"][0])
    for indices in torch.arange(done, len(exposure)).split(min(chunk, _SEARCHED) if searching else chunk):
        if should_stop is not None and should_stop():
            raise Interrupted("the audit was stopped; the same command goes on from there")
        x = exposure.images.float(indices)
        x_hat = attack.reconstruct(exposure.z[indices].to(device)).detach().float().cpu().clamp(0, 1)
        found["mse"].append(metrics.mse(x, x_hat))
        found["psnr"].append(metrics.psnr(x, x_hat).clamp(max=_MOST_PSNR))
        found["ssim"].append(metrics.ssim(x, x_hat))
        found["pixels"].append(x_hat.mul(255).round().byte())
        if state is not None and searching:
            checkpoint.save(state, {name: torch.cat(parts) for name, parts in found.items()}, {})
    return Redrawn(**{name: torch.cat(parts) for name, parts in found.items()})


def summary(redrawn: Redrawn) -> dict[str, Any]:
    """Mean, worst 5 % and worst image of each measure; worst for the person in the picture, so redrawn best.

    Each measure has worst images of its own: the smallest MSE, the largest PSNR, the largest SSIM.
    """
    return {
        "images": len(redrawn.mse),
        "mse": _spread(redrawn.mse, smaller_is_worse=True),
        "psnr": _spread(redrawn.psnr),
        "ssim": _spread(redrawn.ssim),
    }


def strongest(parts: list[Redrawn]) -> tuple[Redrawn, Tensor]:
    """For each image the best attacker's values, measure by measure, and which of `parts` has the smallest MSE.

    No attacker can choose so without knowing the image; it shows how much the attacks complement each other.
    """
    mse = torch.stack([part.mse for part in parts])
    best = mse.argmin(0)
    pixels = torch.stack([part.pixels for part in parts])
    return (
        Redrawn(
            mse.amin(0),
            torch.stack([part.psnr for part in parts]).amax(0),
            torch.stack([part.ssim for part in parts]).amax(0),
            pixels[best, torch.arange(len(best))],
        ),
        best,
    )


def tried_on_all(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attacks that redrew every image; means over other images than those cannot be compared with theirs."""
    most = max(attack["test"]["images"] for attack in attacks)
    return [attack for attack in attacks if attack["test"]["images"] == most]


def mean_image_error(train: ImageSet, images: ImageSet) -> float:
    """The error of an attacker who ignores the feature and always answers with the mean of its images."""
    mean = train.images.double().mean(0, keepdim=True).div_(255).float()
    total = 0.0
    for indices in torch.arange(len(images)).split(2048):
        x = images.float(indices)
        total += float(metrics.mse(x, mean.expand_as(x)).sum())
    return total / len(images)


def _spread(values: Tensor, *, smaller_is_worse: bool = False) -> dict[str, float]:
    ordered = values.double().sort(descending=not smaller_is_worse).values
    worst = max(1, math.ceil(WORST_SHARE * len(ordered)))
    return {
        "mean": float(ordered.mean()),
        "error": float(ordered.std() / len(ordered) ** 0.5) if len(ordered) > 1 else 0.0,
        "worst5": float(ordered[:worst].mean()),
        "worst": float(ordered[0]),
    }
