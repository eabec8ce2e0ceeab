"""A residual network as one of your own might look; `sfumato cuts docs.examples.small_resnet:build` lists its cuts."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and the skip around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class SmallResNet(nn.Module):
    """A stem, two stages with a bottleneck between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU())
        self.stage1 = nn.Sequential(Block(16), Block(16))
        self.bottleneck = nn.Sequential(nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.Sigmoid())
        self.stage2 = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), Block(64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (N, 3, 32, 32)."""
        x = self.stage2(self.bottleneck(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


def build() -> tuple[nn.Module, Tensor]:
    """The model, and an example of what it takes."""
    return SmallResNet(), torch.rand(2, 3, 32, 32)
