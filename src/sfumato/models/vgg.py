"""Plain networks with batch normalisation, cut behind one of their first convolutions: VGG, and one for tiny images."""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from sfumato.errors import ConfigError
from sfumato.models.layers import Dropout, Shared, check_image_shape, halves, plain_parts

_PLAN = (
    *((64, True), (128, True), (256, False), (256, True)),
    *((512, False), (512, True), (512, False), (512, False)),
)  # four halvings before the last pool
_CUTS = (1, 2, 3)
_POOLED_TWICE = 20  # from this side on vgg5 pools behind its second convolution


def vgg11(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (3, 32, 32),
    **shared: Unpack[Shared],
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of the paper's VGG11 (supplement, Table 9).

    Encoder at the second convolution: Conv3x3(3->64), BatchNorm, ReLU, MaxPool2, Conv3x3(64->128), BatchNorm, ReLU,
    MaxPool2, then the bottleneck Conv3x3(128->8) and a sigmoid. Decoder: Conv3x3(8->128), the six remaining
    convolutions with their pools, then Dropout, Linear 512-512, ReLU, Dropout, Linear 512-512, ReLU, Linear
    512-classes. Every convolution has a bias. For 3x32x32 images:

        cut    feature    encoder parameters
         1     8x16x16          6,536
         2     8x8x8           85,256
         3     8x8x8          390,152

    The paper's cut is the second; the whole network then has 9,774,994 parameters.

    The last pool takes the maximum over whatever map is left, 2x2 for 32x32 images (as published), 3x3 for 48x48 and
    4x4 for 64x64, so the head is the same for every image size.

    Args:
        cut: the encoder ends behind this convolution, 1 to 3, and behind the pool that follows the first two.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 16x16.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.
    """
    shape = check_image_shape(image_shape)
    parts = plain_parts(_PLAN, shape[0], shared.get("stem"))
    edge, cloud = halves(
        "vgg11", parts, cut=cut, cuts=_CUTS, num_classes=num_classes, image_shape=shape,
        least=16, instead="use 'vgg5' instead", **shared,
    )  # fmt: skip
    cloud["pool8"] = nn.MaxPool2d((shape[1] // 16, shape[2] // 16))
    cloud["flatten"] = nn.Flatten()
    cloud["head"] = nn.Sequential(
        Dropout(0.5),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        Dropout(0.5),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, num_classes),
    )
    return nn.Sequential(edge), nn.Sequential(cloud)


def vgg5(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (1, 28, 28),
    **shared: Unpack[Shared],
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of a network of four convolutions and one linear layer, for images such as Fashion-MNIST's.

    Conv3x3(1->32), MaxPool2, Conv3x3(32->32), MaxPool2, Conv3x3(32->64), MaxPool2, Conv3x3(64->64), Linear; each
    convolution is followed by BatchNorm and ReLU, the bottleneck is built as in `vgg11`. Images with a side below 20
    are not pooled behind the second convolution, so that 14x14 and 28x28 images have the same feature at cuts 2 and 3:

        cut    feature of 14x14    of 28x28           of 32x32           encoder parameters, one channel
         1     8x7x7 = 392         8x14x14 = 1,568    8x16x16 = 2,048     2,696
         2     8x7x7 = 392         8x7x7   =   392    8x8x8   =   512    12,008
         3     8x3x3 =  72         8x3x3   =    72    8x4x4   =   128    32,936

    Args:
        cut: the encoder ends behind this convolution, 1 to 3, and behind a pool that follows it.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 8x8.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.

    Example:
        >>> import torch
        >>> edge, cloud = vgg5(image_shape=(1, 14, 14))
        >>> tuple(edge(torch.zeros(1, 1, 14, 14)).shape)
        (1, 8, 7, 7)
    """
    shape = check_image_shape(image_shape)
    plan = ((32, True), (32, min(shape[1:]) >= _POOLED_TWICE), (64, True), (64, False))
    edge, cloud = halves(
        "vgg5", plain_parts(plan, shape[0], shared.get("stem")), cut=cut, cuts=_CUTS, num_classes=num_classes,
        image_shape=shape, least=8, instead="use 'digits' instead", **shared,
    )  # fmt: skip
    halvings = sum(pooled for _, pooled in plan)
    cloud["flatten"] = nn.Flatten()
    cloud["head"] = nn.Linear(64 * (shape[1] >> halvings) * (shape[2] >> halvings), num_classes)
    return nn.Sequential(edge), nn.Sequential(cloud)


def digits(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (1, 8, 8),
    width: int = 16,
    **shared: Unpack[Shared],
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of five convolutions and one linear layer for 8x8 digits: trains in seconds on a CPU.

    With w = `width`: Conv3x3(1->w), MaxPool2, three times Conv3x3(->2w), Conv3x3(2w->4w), MaxPool2, Linear; each
    convolution is followed by BatchNorm and ReLU. The bottleneck is built as in `vgg11`: for 8x8 images the feature is
    8x4x4.

    Args:
        cut: the encoder ends behind this convolution, 1 to 4; the feature has the same size in all.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 4x4.
        width: channels of the first convolution.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.
    """
    shape = check_image_shape(image_shape)
    if width < 1:
        raise ConfigError(f"width is {width}; give at least 1")
    plan = ((width, True), (2 * width, False), (2 * width, False), (2 * width, False), (4 * width, True))
    parts = plain_parts(plan, shape[0], shared.get("stem"))
    edge, cloud = halves(
        "digits", parts, cut=cut, cuts=(1, 2, 3, 4), num_classes=num_classes, image_shape=shape, least=4, **shared
    )
    cloud["flatten"] = nn.Flatten()
    cloud["head"] = nn.Linear(4 * width * (shape[1] // 4) * (shape[2] // 4), num_classes)
    return nn.Sequential(edge), nn.Sequential(cloud)
