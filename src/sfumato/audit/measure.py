"""How well images were reconstructed: one value per image, and what is said of many."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks import Reconstruction
from sfumato.data import ImageSet
from sfumato.errors import FeatureError
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

WORST_SHARE = 0.05
"""The share of the images that is called worst: those that are reconstructed best."""

NORMAL_95 = 1.96
"""Standard errors on either side of a mean that make its 95 % interval."""

_CHUNK = 256
_RESAMPLES = 1000


@dataclass(frozen=True)
class Exposure:
    """Images and what left the device for them, the same for every attack."""

    images: ImageSet
    z: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "Exposure":
        """The first images, a random sample of all."""
        if count >= len(self):
            return self
        return Exposure(self.images.subset(range(count)), self.z[:count])


def expose(model: SplitModel, images: ImageSet, *, seed: int, device: torch.device) -> Exposure:
    """What leaves the device for every image, once, with noise that depends on the seed."""
    noise = generator(seed, "audit-noise", device=device)
    with evaluating(model):
        parts = [
            model.encode(images.float(indices).to(device), noise).float().cpu()
            for indices in torch.arange(len(images)).split(_CHUNK)
        ]
    z = torch.cat(parts)
    if bad := int((~z.isfinite()).flatten(1).any(1).sum()):
        raise FeatureError(
            f"the encoder gives NaN or infinite features for {bad:,} of {len(z):,} images; mend it first"
        )
    return Exposure(images, z)


def summary(found: Reconstruction) -> dict[str, Any]:
    """Mean, worst 5 % and worst image of each measure; worst for the person in the picture, so reconstructed best.

    Each measure has worst images of its own: the smallest MSE, the largest PSNR, the largest SSIM.
    """
    return {
        "images": len(found.mse),
        "mse": _spread(found.mse, smaller_is_worse=True),
        "psnr": _spread(found.psnr),
        "ssim": _spread(found.ssim),
    }


def strongest(parts: list[Reconstruction]) -> tuple[Reconstruction, Tensor]:
    """For each image the best attacker's values, measure by measure, and which of `parts` has the smallest MSE.

    No attacker can choose so without knowing the image; it shows how much the attacks complement each other.
    """
    mse = torch.stack([part.mse for part in parts])
    best = mse.argmin(0)
    pixels = torch.stack([part.pixels for part in parts])
    return (
        Reconstruction(
            mse.amin(0),
            torch.stack([part.psnr for part in parts]).amax(0),
            torch.stack([part.ssim for part in parts]).amax(0),
            parts[0].index,
            pixels[best, torch.arange(len(best))],
        ),
        best,
    )


def tried_on_all(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attacks that reconstructed every image; means over other images than those cannot be compared with theirs."""
    most = max(attack["test"]["images"] for attack in attacks)
    return [attack for attack in attacks if attack["test"]["images"] == most]


def clearly_better(attack: Mapping[str, Any]) -> bool:
    """Whether an attack that was tried on some images beats, on those, the strongest of the others beyond chance."""
    same = attack.get("same_images")
    return bool(same and same["gap"] < -2 * same["error"])


def counted(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attacks whose figures are those of the audit: tried on every image, or clearly better on those they were."""
    return tried_on_all(attacks) + [one for one in attacks if clearly_better(one)]


def _spread(values: Tensor, *, smaller_is_worse: bool = False) -> dict[str, Any]:
    """Figures of one measure; `pessimistic` are the ends of their 95 % intervals at which more has leaked.

    The interval of the mean is normal, that of the worst twentieth is bootstrapped over images, and the worst image is
    what it is.
    """
    ordered = values.double().sort(descending=not smaller_is_worse).values.numpy()
    count = len(ordered)
    worst = max(1, math.ceil(WORST_SHARE * count))
    error = float(ordered.std(ddof=1) / count**0.5) if count > 1 else 0.0
    # Positions in the order are resampled, so that the first ones drawn are the worst ones drawn.
    drawn = np.sort(np.random.default_rng(0).integers(count, size=(_RESAMPLES, count)), axis=1)[:, :worst]
    tail = np.quantile(ordered[drawn].mean(1), 0.025 if smaller_is_worse else 0.975)
    sign = -1.0 if smaller_is_worse else 1.0
    spread = {"mean": float(ordered.mean()), "worst5": float(ordered[:worst].mean()), "worst": float(ordered[0])}
    ends = {"mean": spread["mean"] + sign * NORMAL_95 * error, "worst5": float(tail), "worst": spread["worst"]}
    if smaller_is_worse:
        ends["mean"] = max(0.0, ends["mean"])
    return spread | {"error": error, "pessimistic": ends}


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was measured on `count` images.

    >>> [round(end, 3) for end in share_interval(0.5, 100)]
    [0.404, 0.596]
    """
    square = NORMAL_95**2 / count
    centre = (share + square / 2) / (1 + square)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def pessimistic_ends(leakage: Mapping[str, Any], accuracy: float | None, tested: int) -> dict[str, float | None]:
    """Of the information and of the accuracy on `tested` images or texts, the ends of their 95 % intervals that leak
    more.
    """
    information = leakage.get("information")
    return {
        "information": None if information is None else information + NORMAL_95 * leakage["information_error"],
        "accuracy": None if accuracy is None else share_interval(accuracy, tested)[0],
    }
