"""A small variational autoencoder of images: the generator of the latent attack."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.models.layers import check_image_shape
from sfumato.models.reconstruction import ReconstructionNet


class Autoencoder(nn.Module):
    """Image -> Gaussian over a code -> image (Kingma and Welling 2014).

    Strided convolutions down to at most 4x4 and a linear layer give mean and log-variance of the code; a
    `ReconstructionNet` for flat features turns a code into an image in (0, 1).

    Args:
        image_shape: (C, H, W).
        code: dimension of the code.
        width: channels of all inner layers.
        blocks: residual blocks of the generator.

    Raises:
        ConfigError: a shape or number is out of its range.
    """

    def __init__(self, image_shape: Sequence[int], *, code: int = 128, width: int = 32, blocks: int = 1) -> None:
        super().__init__()
        channels, height, breadth = check_image_shape(image_shape)
        if code < 1 or width < 1:
            raise ConfigError(f"code is {code} and width is {width}; give at least 1")
        layers: list[nn.Module] = []
        inputs = channels
        while max(height, breadth) > 4:
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs, height, breadth = width, math.ceil(height / 2), math.ceil(breadth / 2)
        self.read = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * height * breadth, 2 * code))
        self.write = ReconstructionNet((code,), image_shape, width=width, blocks=blocks)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the code, (N, code) each."""
        mean, log_variance = self.read(4.0 * (x - 0.5)).chunk(2, 1)
        return mean, log_variance.clamp(-12, 4)

    def decode(self, code: Tensor) -> Tensor:
        """(N, code) -> (N, C, H, W) in (0, 1)."""
        x: Tensor = self.write(code)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The image of the code's mean."""
        return self.decode(self.encode(x)[0])

    @staticmethod
    def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL divergence of the code's distribution from N(0, I) in nats, (N,)."""
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)

    @staticmethod
    def sample(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of the code, differentiable."""
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
        return mean + (0.5 * log_variance).exp() * noise
