"""A target of which everything is known in closed form: attack it, and no attack may beat the truth.

`sfumato audit sfumato.audit.synthetic:linear_gaussian --minutes 2` shows it.
"""

import torch
from torch import Tensor, nn

from sfumato.audit.subject import GaussianPrior, Subject
from sfumato.bounds import fisher_information, posterior_mse
from sfumato.data import DataSets, ImageSet
from sfumato.split import Channel, SplitModel

_MEAN = 0.5
_SPREAD = 0.1  # pixels stay in [0, 1] up to five standard deviations


class _Linear(nn.Module):
    """z_hat = A (x - 1/2)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - _MEAN) @ self.weight.T


class _Bright(nn.Module):
    """A decoder that has nothing to do with the image: the synthetic data has no classes."""

    def forward(self, z: Tensor) -> Tensor:
        return z.flatten(1)[:, :2]


def linear_gaussian(
    *, side: int = 8, features: int = 16, noise_std: float = 0.1, train: int = 4000, test: int = 1000, seed: int = 0
) -> Subject:
    """x ~ N(1/2, C) as grey images of smooth textures, z = A (x - 1/2) + N(0, sigma^2 I).

    The posterior is Gaussian, so that the minimal error is `Tr (C^-1 + A^T A / sigma^2)^-1 / d`, van Trees' bound is
    that same number, and ridge regression reaches it. Pixels are stored in 8 bits, which adds a variance of 1.3e-6.

    Args:
        side: height and width.
        features: D, rows of A, orthonormal.
        noise_std: sigma.
        train: images for the attacker.
        test: images to reconstruct.
        seed: of A and the images.
    """
    random = torch.Generator().manual_seed(seed)
    size = side * side
    covariance = _smooth_covariance(side)
    root = torch.linalg.cholesky(covariance)
    rows = torch.linalg.qr(torch.randn(size, features, generator=random, dtype=torch.float64)).Q.T
    x = _MEAN + torch.randn(train + test, size, generator=random, dtype=torch.float64) @ root.T
    pixels = x.clamp(0, 1).mul(255).round().byte().reshape(-1, 1, side, side)
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    known = fisher_information(rows[None], noise_std**2)
    exact = posterior_mse(torch.linalg.inv(torch.linalg.inv(covariance) + known))
    return Subject(
        name=f"linear-Gaussian channel, σ {noise_std:g}",
        model=SplitModel(_Linear(rows.float()), Channel(noise_std=noise_std), _Bright()),
        classifies=False,
        sets=DataSets(
            "linear-gaussian",
            ImageSet(pixels[:train], labels[:train], ("texture",)),
            ImageSet(pixels[train:], labels[train:], ("texture",)),
            "Synthetic textures drawn from the declared prior; they stand for nothing but themselves.",
            labelled=False,
        ),
        prior=GaussianPrior(torch.full((size,), _MEAN, dtype=torch.float64), covariance),
        exact_mse=float(exact),
        setting=f"σ {noise_std:g}",
    )


def _smooth_covariance(side: int) -> Tensor:
    """Neighbouring pixels go together: covariance falls with the distance, over about two pixels."""
    axis = torch.arange(side, dtype=torch.float64)
    places = torch.cartesian_prod(axis, axis)
    distance = torch.cdist(places, places)
    return _SPREAD**2 * (torch.exp(-distance / 2) + 0.05 * torch.eye(side * side, dtype=torch.float64)) / 1.05
