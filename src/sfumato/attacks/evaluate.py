"""How well an attack redraws a set of images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sfumato import checkpoint, metrics
from sfumato.attacks.base import Attack
from sfumato.data import ImageSet
from sfumato.errors import Interrupted
from sfumato.seeds import generator
from sfumato.split import SplitModel

__all__ = ["Inversion", "Release", "chosen_images", "invert"]

Release = Callable[[Tensor, torch.Generator], Tensor]
"""What leaves the device for images (n, C, H, W), as the attack's `reconstruct` takes it."""

_BATCH = 512
_AFFORDABLE = 32  # images at a time, for attacks that work on each image


@dataclass(frozen=True)
class Inversion:
    """Reconstruction quality, averaged over images (each measure is computed per image first).

    Attributes:
        mse: mean over the set.
        psnr: likewise, in dB.
        ssim: likewise.
        mse_error: standard error of the mean of `mse`.
        originals: the first images of the set, for a picture.
        redrawn: what the attack made of them.
        each: `mse`, `psnr` and `ssim` image by image, (N,) float32; `index`, the image's place in the set.
    """

    mse: float
    psnr: float
    ssim: float
    mse_error: float
    originals: Tensor
    redrawn: Tensor
    each: dict[str, Tensor] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """The figures, without the pictures."""
        return {"mse": self.mse, "psnr": self.psnr, "ssim": self.ssim, "mse_error": self.mse_error}


def chosen_images(count: int, most: int | None, seed: int) -> Tensor:
    """Which of `count` images an attack that affords `most` is tried on: all, or a sample in rising order."""
    if most is None or most >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(seed, "affordable"))[:most].sort().values


def invert(
    attack: Attack,
    model: SplitModel,
    images: ImageSet,
    *,
    seed: int = 0,
    show: int = 16,
    release: Release | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Attack what leaves the device for every image of a set, with fresh noise, and measure the redrawn images.

    An attack that works on every image anew (`attack.most_images`) is tried on a sample of that many images, the same
    one for every attack that affords as many.

    Args:
        attack: a fitted attack.
        model: the victim.
        images: to be redrawn.
        seed: of the noise and of the sample.
        show: how many originals and redrawn images to keep.
        release: what leaves the device; None asks `model.encode`, once for every image.
        state: file that keeps what was redrawn so far, for attacks that take long; the caller removes it.
        progress: called with (done, total) images.
        should_stop: asked after every batch; True leaves.

    Raises:
        Interrupted: `should_stop` said so; the same call goes on from `state`.
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    noise = generator(seed, "evaluate-attack", device=device)
    model.eval()
    release = release or model.encode
    indices = chosen_images(len(images), attack.most_images, seed)
    known = _known(state)
    redrawn: list[Tensor] = []
    for part in indices.split(_BATCH if attack.most_images is None else _AFFORDABLE):
        with torch.no_grad():
            z = release(images.float(part).to(device), noise).float()
        done = sum(map(len, redrawn))
        if len(known) >= done + len(part):  # redrawn in an earlier call; the noise has moved on all the same
            redrawn.append(known[done : done + len(part)])
            continue
        redrawn.append(attack.reconstruct(z).cpu())
        done += len(part)
        stop = should_stop is not None and should_stop()
        if state is not None and (stop or attack.most_images is not None):
            checkpoint.save(state, {"redrawn": torch.cat(redrawn)}, {})
        if progress is not None:
            progress(done, len(indices))
        if stop and done < len(indices):
            raise Interrupted("the attack was stopped; the same command goes on from there")
    return _measured(images, indices, torch.cat(redrawn), show)


def _known(state: Path | None) -> Tensor:
    return checkpoint.load(state)[0]["redrawn"] if state is not None and state.exists() else torch.empty(0)


def _measured(images: ImageSet, indices: Tensor, x_hat: Tensor, show: int) -> Inversion:
    parts = [(images.float(index).cpu(), x_hat[place]) for place, index in _places(indices)]
    measures = {"mse": metrics.mse, "psnr": metrics.psnr, "ssim": metrics.ssim}
    each = {name: torch.cat([measure(*part) for part in parts]) for name, measure in measures.items()}
    error = each["mse"].double()
    return Inversion(
        mse=float(error.mean()),
        psnr=float(each["psnr"].double().mean()),
        ssim=float(each["ssim"].double().mean()),
        mse_error=float(error.std() / len(error) ** 0.5) if len(error) > 1 else 0.0,
        originals=images.float(indices[:show]).cpu(),
        redrawn=x_hat[:show],
        each={**each, "index": indices},
    )


def _places(indices: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.arange(len(indices)).split(_BATCH), indices.split(_BATCH), strict=True))
