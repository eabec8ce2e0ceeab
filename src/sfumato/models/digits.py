"""A small network for small images, such as scikit-learn's 8x8 digits: trains in seconds on a CPU."""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from sfumato.errors import ConfigError
from sfumato.models.layers import Shared, check_image_shape, halves, plain_parts


def digits(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (1, 8, 8),
    width: int = 16,
    **shared: Unpack[Shared],
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of a network of five convolutions and one linear layer.

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
