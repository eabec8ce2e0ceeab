"""x ~ N(m, C), a linear encoder, Gaussian noise: the smallest possible error is known exactly."""

from dataclasses import dataclass

import torch

from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel

SIDE = 4
DIMENSION = SIDE * SIDE
MEAN, STD = 0.5, 0.1  # five standard deviations inside [0, 1]


class LinearEncoder(torch.nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        drawn = torch.randn(DIMENSION, features, generator=torch.Generator().manual_seed(3))
        self.weight = torch.nn.Parameter(drawn / DIMENSION**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - MEAN) @ self.weight


@dataclass
class Problem:
    model: SplitModel
    train: ImageSet
    test: ImageSet
    covariance: torch.Tensor
    sigma: float

    def posterior_mean(self, z: torch.Tensor) -> torch.Tensor:
        """The estimate with the smallest mean squared error, in float64."""
        weight = self.model.edge.weight.detach().double()
        seen = weight.T @ self.covariance @ weight + self.sigma**2 * torch.eye(weight.shape[1]).double()
        gain = torch.linalg.solve(seen, weight.T @ self.covariance)
        return MEAN + z.double() @ gain

    @property
    def minimal_mse(self) -> float:
        weight = self.model.edge.weight.detach().double()
        seen = weight.T @ self.covariance @ weight + self.sigma**2 * torch.eye(weight.shape[1]).double()
        explained = self.covariance @ weight @ torch.linalg.solve(seen, weight.T @ self.covariance)
        return float((self.covariance - explained).trace()) / DIMENSION


def covariance() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    axes, _ = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64))
    spread = axes @ torch.diag(torch.linspace(0, -4, DIMENSION, dtype=torch.float64).exp()) @ axes.T
    return spread / spread.diagonal().mean() * STD**2


def images(count: int, seed: int) -> ImageSet:
    root = torch.linalg.cholesky(covariance())
    white = torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pixels = ((MEAN + white @ root.T) * 255).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels.view(count, 1, SIDE, SIDE), torch.zeros(count, dtype=torch.int64), ("only",))


def problem(sigma: float = 0.05, features: int = 8, count: int = 2000, tests: int = 4000) -> Problem:
    model = SplitModel(LinearEncoder(features), Channel(noise_std=sigma), torch.nn.Identity()).eval()
    return Problem(model, images(count, 1), images(tests, 2), covariance(), sigma)
