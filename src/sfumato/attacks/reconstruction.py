"""Reconstructing a set of images from what leaves the device, and measuring every one of them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sfumato import checkpoint, metrics
from sfumato.attacks.base import Attack
from sfumato.data import ImageSet
from sfumato.errors import Interrupted, SfumatoError
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = [
    "MOST_PSNR",
    "Reconstruction",
    "Release",
    "chosen_images",
    "invert",
    "invert_released",
    "mean_image_error",
]

Release = Callable[[Tensor, torch.Generator], Tensor]
"""What leaves the device for images (n, C, H, W), as the attack's `reconstruct` takes it."""

MOST_PSNR = 120.0
"""The largest PSNR of a reconstruction in decibels, that of an error of 10^-12. One that is exact, bit for bit, has an
infinite one, which is no number for a mean or for JSON."""

_BATCH = 512
_AFFORDABLE = 16  # images at a time, for attacks that work on each image: between them they may stop


@dataclass(frozen=True)
class Reconstruction:
    """What an attack made of a set of images.

    Attributes:
        mse: mean squared error of each image, (N,).
        psnr: likewise, in decibels, at most `MOST_PSNR`.
        ssim: likewise.
        index: the place of each image in its set, (N,).
        pixels: (n, C, H, W) uint8, rounded, of all images or only of the first ones.

    >>> one, grey = torch.ones(3), torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    >>> found = Reconstruction(mse=0.1 * one, psnr=10 * one, ssim=one, index=torch.arange(3), pixels=grey)
    >>> print(f"{found.means()['mse']:.2f} {found.images.mean():.2f}")
    0.10 0.20
    """

    mse: Tensor
    psnr: Tensor
    ssim: Tensor
    index: Tensor
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.mse)

    @property
    def images(self) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return self.pixels.float() / 255

    def means(self) -> dict[str, float]:
        """The mean of `mse`, `psnr` and `ssim` over the images, and `mse_error`, the standard error of the first."""
        error = self.mse.double()
        return {
            "mse": float(error.mean()),
            "psnr": float(self.psnr.double().mean()),
            "ssim": float(self.ssim.double().mean()),
            "mse_error": float(error.std() / len(error) ** 0.5) if len(error) > 1 else 0.0,
        }

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """For a file."""
        return {f"{prefix}.{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, prefix: str, tensors: dict[str, Tensor]) -> Self:
        """What `tensors` gave."""
        return cls(**{name: tensors[f"{prefix}.{name}"] for name in cls.__dataclass_fields__})


def chosen_images(count: int, most: int | None, seed: int) -> Tensor:
    """Which of `count` images an attack that affords `most` is tried on: all, or a sample in rising order.

    >>> len(chosen_images(1000, 64, seed=0))
    64
    """
    if most is None or most >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(seed, "affordable"))[:most].sort().values


def invert(
    attack: Attack,
    model: SplitModel,
    images: ImageSet,
    *,
    seed: int = 0,
    keep: int | None = 16,
    release: Release | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Reconstruction:
    """Attack what leaves the device for every image of a set, with fresh noise, and measure every reconstruction.

    An attack that works on every image anew (`attack.most_images`) is tried on a sample of that many images, the same
    one for every attack that affords as many.

    Args:
        attack: a fitted attack.
        model: the victim; it runs in evaluation mode.
        images: to be reconstructed.
        seed: of the noise and of the sample.
        keep: how many reconstructed images to keep; None keeps all.
        release: what leaves the device; None asks `model.encode`, once for every image.
        state: file that keeps what was reconstructed so far, for attacks that take long; the caller removes it.
        progress: called with (done, total) images.
        should_stop: asked after every batch; True leaves.

    Raises:
        Interrupted: `should_stop` said so; the same call resumes from `state`.
        SfumatoError: the attack answers with NaN or infinite pixels.

    >>> import sfumato
    >>> from sfumato.attacks import Observer, RidgeAttack
    >>> sets = sfumato.data.load("digits", None, seed=0)
    >>> model = SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> print(f"{invert(RidgeAttack().fit(Observer(model, sets.train)), model, sets.test).means()['mse']:.4f}")
    0.0049
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    noise = generator(seed, "evaluate-attack", device=device)
    release = release or model.encode

    def released(index: Tensor) -> Tensor:
        with evaluating(model):
            return release(images.float(index).to(device), noise)

    index = chosen_images(len(images), attack.most_images, seed)
    return _reconstruct(attack, images, index, released, keep, state, should_stop, progress)


def invert_released(
    attack: Attack,
    images: ImageSet,
    z: Tensor,
    *,
    device: torch.device | str = "cpu",
    state: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
    until: float = math.inf,
) -> Reconstruction:
    """`invert` for features (N, ...) that left the device before; all reconstructed images are kept, and of an attack
    that works on every image anew only as many are reconstructed as are done when `time.monotonic()` is `until`.

    >>> import sfumato
    >>> from sfumato.attacks import Observer, RidgeAttack
    >>> sets = sfumato.data.load("digits", None, seed=0)
    >>> model = SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> attack, few = RidgeAttack().fit(Observer(model, sets.train)), sets.test.subset(torch.arange(20))
    >>> len(invert_released(attack, few, model.encode(few.float(torch.arange(20)))))
    20
    """
    index = torch.arange(len(images))
    return _reconstruct(attack, images, index, lambda part: z[part].to(device), None, state, should_stop, until=until)


def _reconstruct(
    attack: Attack,
    images: ImageSet,
    index: Tensor,
    released: Callable[[Tensor], Tensor],
    keep: int | None,
    state: Path | None,
    should_stop: Callable[[], bool] | None,
    progress: Callable[[int, int], None] | None = None,
    until: float = math.inf,
) -> Reconstruction:
    """Batch by batch, so that no more than the kept pixels and three numbers per image stay in memory."""
    searching = attack.most_images is not None
    watched = {"should_stop": should_stop} if searching and should_stop is not None else {}
    found: dict[str, list[Tensor]] = {"mse": [], "psnr": [], "ssim": [], "pixels": []}
    known = done = 0
    if state is not None and state.exists():
        found = {name: [value] for name, value in checkpoint.load(state)[0].items()}
        known = len(found["mse"][0])
    for part in index.split(_AFFORDABLE if searching else _BATCH):
        began = time.monotonic()
        z = released(part)  # asked for known ones too: the noise of the others must not depend on an interruption
        done += len(part)
        if done <= known:
            continue
        x, x_hat = images.float(part).cpu(), attack.reconstruct(z, **watched).detach().float().cpu()
        if not bool(x_hat.isfinite().all()):
            raise SfumatoError(
                "the attack reconstructs images with NaN or infinite pixels; lower its learning rate, or mend it"
            )
        x_hat = x_hat.clamp(0, 1)
        found["mse"].append(metrics.mse(x, x_hat))
        found["psnr"].append(metrics.psnr(x, x_hat).clamp(max=MOST_PSNR))
        found["ssim"].append(metrics.ssim(x, x_hat))
        left = None if keep is None else max(0, keep - sum(map(len, found["pixels"])))
        found["pixels"].append(x_hat[:left].mul(255).round().byte())
        stop = should_stop is not None and should_stop()
        if state is not None and (stop or searching):
            checkpoint.save(state, {name: torch.cat(parts) for name, parts in found.items()}, {})
        if progress is not None:
            progress(done, len(index))
        if stop and done < len(index):
            raise Interrupted("the attack was stopped; the same command resumes there")
        if searching and 2 * time.monotonic() - began > until:  # the next part would be late
            break
    return Reconstruction(index=index[:done], **{name: torch.cat(parts) for name, parts in found.items()})


def mean_image_error(train: ImageSet, images: ImageSet) -> float:
    """The error of an attacker who ignores the feature and always answers with the mean of its images.

    >>> import sfumato
    >>> sets = sfumato.data.load("digits", None, seed=0)
    >>> print(f"{mean_image_error(sets.train, sets.test):.4f}")
    0.0740
    """
    # In float64: a float32 sum over tens of thousands of images loses digits.
    mean = train.images.double().mean(0, keepdim=True).div_(255).float()
    total = 0.0
    for index in torch.arange(len(images)).split(2048):
        x = images.float(index)
        total += float(metrics.mse(x, mean.expand_as(x)).sum())
    return total / len(images)
