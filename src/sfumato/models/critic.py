"""The critic of the GAN attack: how real does an image look?"""

from collections.abc import Sequence

from torch import Tensor, nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.models.layers import check_image_shape

_STAGES = 3
_LAST_KERNEL = 4


class Critic(nn.Module):
    """`D(x)`: one unbounded score per image, higher for images that look real (Zhang et al. 2020, WGAN-GP).

    Up to three stages Conv5x5 stride 2 (3 -> w -> 2w -> 4w), each followed by LeakyReLU 0.2 and, from the second on,
    preceded by an InstanceNorm with learned scale and shift: a BatchNorm would couple the images of a batch, which the
    gradient penalty forbids. Then Conv4x4 to one channel, without padding, whose mean over the map is the score.

    At 32x32 that map is the single number of the published network. Larger images (3x3 values at 48x48, 5x5 at 64x64)
    are scored patch by patch; smaller ones have as many stages as leave the last convolution a 4x4 map (one at 8x8),
    at least one.

    Args:
        image_shape: (C, H, W).
        width: channels w of the first stage.

    Raises:
        ConfigError: a shape or number is out of its range.
    """

    def __init__(self, image_shape: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape)
        if width < 1:
            raise ConfigError(f"width is {width}; give at least 1")
        channels, *size = self.image_shape
        layers: list[nn.Module] = []
        for stage in range(_STAGES):
            halved = [-(-side // 2) for side in size]
            if stage > 0 and min(halved) < _LAST_KERNEL:
                break
            layers.append(nn.Conv2d(channels, width << stage, 5, stride=2, padding=2))
            if stage > 0:
                layers.append(nn.InstanceNorm2d(width << stage, affine=True))
            layers.append(nn.LeakyReLU(0.2))
            channels, size = width << stage, halved
        height, breadth = (min(_LAST_KERNEL, side) for side in size)
        layers.append(nn.Conv2d(channels, 1, (height, breadth)))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,)

        Raises:
            FeatureError: `x` has another shape than the critic was built for.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise FeatureError(
                f"the critic was built for images {self.image_shape}, got {tuple(x.shape[1:])}; "
                "build it with their image_shape"
            )
        out: Tensor = self.body(x).flatten(1).mean(1)
        return out
