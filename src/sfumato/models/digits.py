"""A small network for small images, such as scikit-learn's 8x8 digits: trains in seconds on a CPU."""

from collections.abc import Sequence

from torch import nn

from sfumato.errors import ConfigError
from sfumato.models.layers import POOL, check_image_shape, plain_halves

__all__ = ["digits"]


def digits(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (1, 8, 8),
    bottleneck: int | None = 8,
    width: int = 16,
    stem: int | None = None,
    squash: bool = True,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of a network of five convolutions and one linear layer.

    With w = `width`: Conv3x3(1->w), MaxPool2, three times Conv3x3(->2w), Conv3x3(2w->4w), MaxPool2, Linear; each
    convolution is followed by BatchNorm and ReLU. The bottleneck is built as in `vgg11`: for 8x8 images the feature is
    8x4x4.

    Args:
        cut: the encoder ends behind this convolution, 1 to 4; the feature has the same size in all.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 4x4.
        bottleneck: channels of the feature, which a sigmoid bounds to (0, 1). None gives the raw ReLU feature of w or
            2w channels: unbounded, so the channel needs a `clip_norm`.
        width: channels of the first convolution.
        stem: channels of one more convolution in front (PATROL's), or None.
        squash: False leaves the sigmoid out; the feature is then unbounded, so the channel needs a `clip_norm`.
        mean: subtracted from the images, one number or one per channel.
        std: divides the images, one number or one per channel.

    Raises:
        ConfigError: an argument is out of its range.
    """
    shape = check_image_shape(image_shape)
    if min(shape[1:]) < 4:
        raise ConfigError(f"digits needs images of at least 4x4, got {shape}; enlarge the images")
    if min(width, num_classes) < 1:
        raise ConfigError(f"width is {width} and num_classes is {num_classes}; give at least 1 each")
    plan = (width, POOL, 2 * width, 2 * width, 2 * width, 4 * width, POOL)
    edge, cloud = plain_halves(
        plan, cut=cut, cuts=4, bottleneck=bottleneck, image_shape=shape, mean=mean, std=std, stem=stem, squash=squash
    )
    cloud["flatten"] = nn.Flatten()
    cloud["head"] = nn.Linear(4 * width * (shape[1] // 4) * (shape[2] // 4), num_classes)
    return nn.Sequential(edge), nn.Sequential(cloud)
