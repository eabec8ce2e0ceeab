"""How well an attack redraws a set of images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato import metrics
from sfumato.attacks.base import Attack
from sfumato.data import ImageSet
from sfumato.seeds import generator
from sfumato.split import SplitModel

__all__ = ["Inversion", "invert"]


@dataclass(frozen=True)
class Inversion:
    """Reconstruction quality, averaged over images (each measure is computed per image first).

    Attributes:
        mse, psnr, ssim: means over the set; PSNR in dB.
        mse_error: standard error of the mean of `mse`.
        originals, redrawn: the first images of the set, for a picture.
    """

    mse: float
    psnr: float
    ssim: float
    mse_error: float
    originals: Tensor
    redrawn: Tensor

    def as_dict(self) -> dict[str, float]:
        """The figures, without the pictures."""
        return {"mse": self.mse, "psnr": self.psnr, "ssim": self.ssim, "mse_error": self.mse_error}


@torch.no_grad()
def invert(attack: Attack, model: SplitModel, images: ImageSet, *, seed: int = 0, show: int = 16) -> Inversion:
    """Attack what leaves the device for every image of a set, with fresh noise, and measure the redrawn images."""
    device = next(model.parameters()).device
    noise = generator(seed, "evaluate-attack", device=device)
    errors: list[Tensor] = []
    psnrs: list[Tensor] = []
    ssims: list[Tensor] = []
    originals: list[Tensor] = []
    redrawn: list[Tensor] = []
    model.eval()
    for indices in torch.arange(len(images)).split(512):
        x = images.float(indices).to(device)
        x_hat = attack.reconstruct(model.encode(x, noise).float())
        errors.append(metrics.mse(x, x_hat))
        psnrs.append(metrics.psnr(x, x_hat))
        ssims.append(metrics.ssim(x, x_hat))
        if len(originals) * 512 < show:
            originals.append(x.cpu())
            redrawn.append(x_hat.cpu())
    error = torch.cat(errors).double()
    return Inversion(
        mse=float(error.mean()),
        psnr=float(torch.cat(psnrs).double().mean()),
        ssim=float(torch.cat(ssims).double().mean()),
        mse_error=float(error.std() / len(error) ** 0.5) if len(error) > 1 else 0.0,
        originals=torch.cat(originals)[:show],
        redrawn=torch.cat(redrawn)[:show],
    )
