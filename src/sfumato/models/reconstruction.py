"""The networks of the attacks: from a feature back to the image, and how real does an image look?"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import ConfigError, FeatureError
from sfumato.models.layers import check_image_shape

_STAGES, _LAST_KERNEL = 3, 4  # of the critic
_SMALL_MAP = 8  # a flat feature is first laid out as a map of at most this height and width,
_MAP_CHANNELS = 8  # with as many channels as the feature of the paper's bottleneck


class ResBlock(nn.Module):
    """Pre-activation residual block: `conv2(relu(bn2(conv1(relu(bn1(x)))))) + shortcut(x)`, size unchanged.

    The 3x3 convolutions have a bias. The shortcut is the identity for equal channels, else a 1x1 convolution without
    bias and a BatchNorm.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.bn1(x)))
        out: Tensor = self.conv2(F.relu(self.bn2(inner))) + self.shortcut(x)
        return out


class ReconstructionNet(nn.Module):
    """Released feature -> image in (0, 1) (the paper's supplement S.3, Figure 6).

    ResBlock(C -> w), ReLU, `blocks` times [ResBlock(w -> w), ReLU], one [ConvTranspose3x3 stride 2, BatchNorm, ReLU]
    per doubling, ResBlock(w -> image channels), sigmoid. From 8x8x8 to 3x32x32 with the defaults: 711,539 parameters,
    54.3 million multiply-adds.

    The number of doublings is the one that comes nearest to the image's size. Where the size then still differs
    (another factor than a power of two, odd sizes, another aspect ratio) the map is resized bilinearly to the image's
    size before the last block, which so sees every pixel at its place. A feature that is no map, such as (D,) or the
    tokens (T, C) of a transformer, is flattened and goes through a linear layer to a map of 8 channels first, of the
    image's size halved until it is at most 8x8.

    Args:
        feature_shape: (C, h, w), or any other shape, which is flattened; without the batch dimension.
        image_shape: (C, H, W).
        width: channels w of all inner layers.
        blocks: residual blocks in the middle (ResSFL's and PATROL's proxy adversary has four).

    Raises:
        ConfigError: a shape or number is out of its range.
    """

    def __init__(
        self, feature_shape: Sequence[int], image_shape: Sequence[int], *, width: int = 64, blocks: int = 8
    ) -> None:
        super().__init__()
        self.feature_shape = tuple(int(size) for size in feature_shape)
        self.image_shape = check_image_shape(image_shape)
        if not self.feature_shape or min(self.feature_shape) < 1:
            raise ConfigError(f"feature_shape is {self.feature_shape}; give (channels, height, width) or (dimension,)")
        if width < 1 or blocks < 0:
            raise ConfigError(f"width is {width} and blocks is {blocks}; give at least 1 and at least 0")
        size = self.image_shape[1:]
        self.lay_out: nn.Module = nn.Identity()
        map_shape = self.feature_shape
        if len(map_shape) != 3:
            map_shape = (_MAP_CHANNELS, *_small_map(size))
            flat = nn.Linear(math.prod(self.feature_shape), math.prod(map_shape))
            self.lay_out = nn.Sequential(nn.Flatten(), flat, nn.Unflatten(1, map_shape))
        channels, height, breadth = map_shape
        doublings = max(0, round(math.log2(size[0] * size[1] / (height * breadth)) / 2))
        self.resize = size != (height << doublings, breadth << doublings)
        body: list[nn.Module] = [ResBlock(channels, width), nn.ReLU()]
        for _ in range(blocks):
            body += [ResBlock(width, width), nn.ReLU()]
        for _ in range(doublings):
            body += [
                nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*body)
        self.last = ResBlock(width, self.image_shape[0])

    def forward(self, z: Tensor) -> Tensor:
        """(N, *feature_shape) -> (N, C, H, W) in (0, 1).

        Raises:
            FeatureError: `z` has another shape than the network was built for.
        """
        if tuple(z.shape[1:]) != self.feature_shape:
            raise FeatureError(
                f"the network was built for features {self.feature_shape}, got {tuple(z.shape[1:])}; "
                "build it with the model's feature_shape"
            )
        h = self.body(self.lay_out(z))
        if self.resize:
            h = F.interpolate(h, size=self.image_shape[1:], mode="bilinear", align_corners=False)
        out: Tensor = self.last(h).sigmoid()
        return out


def _small_map(size: tuple[int, ...]) -> tuple[int, int]:
    height, breadth = size
    while max(height, breadth) > _SMALL_MAP:
        height, breadth = -(-height // 2), -(-breadth // 2)
    return height, breadth


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
