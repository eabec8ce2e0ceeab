"""Plain convolutional networks, described by a list, built as two halves."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError

__all__ = ["Dropout", "Normalize", "check_image_shape", "plain_halves"]

POOL = "pool"


class Normalize(nn.Module):
    """`(x - mean) / std` per channel, with constants kept as buffers: images enter every network in [0, 1].

    Args:
        mean: one number per channel, or one for all.
        std: likewise, above 0.
        channels: number of channels of the images.

    Raises:
        ConfigError: the numbers do not fit the channels, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], channels: int) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            numbers = [float(value)] * channels if isinstance(value, int | float) else [float(v) for v in value]
            if len(numbers) != channels:
                raise ConfigError(f"{name} has {len(numbers)} numbers for images of {channels} channels; give one each")
            self.register_buffer(name, torch.tensor(numbers).reshape(1, channels, 1, 1))
        if not all(number > 0 for number in numbers):  # of std; no look at a tensor, which may be on no device
            raise ConfigError(f"std is {std!r}; every standard deviation has to be above 0")

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws from a generator of its own where a training gives it one.

    What a training draws then does not depend on what else the process draws.

    Attributes:
        generator: on the device of the input; None draws from torch's global one. Not part of copies.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None or not self.training or self.p == 0:
            return super().forward(x)
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept.div_(1 - self.p)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"generator": None}


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as a tuple of positive ints, or a ConfigError."""
    shape = tuple(int(size) for size in image_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(f"image_shape is {shape}; give (channels, height, width), such as (3, 32, 32)")
    return shape


def plain_halves(
    plan: Sequence[int | str],
    *,
    cut: int,
    cuts: int,
    bottleneck: int | None,
    image_shape: tuple[int, int, int],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    stem: int | None = None,
    squash: bool = True,
) -> tuple[OrderedDict[str, nn.Module], OrderedDict[str, nn.Module]]:
    """The layers of encoder and decoder of a plain network, by name, without the decoder's head.

    Args:
        plan: channels of each 3x3 convolution (followed by BatchNorm and ReLU), and "pool" for MaxPool2.
        cut: the encoder ends behind this convolution, counted from 1, and behind a pool that follows it.
        cuts: the last convolution behind which a cut is offered.
        bottleneck: channels b of the feature. The encoder then ends in Conv3x3(C -> b) and a sigmoid, the decoder
            begins with Conv3x3(b -> C). None leaves both out.
        image_shape: (C, H, W).
        mean: of `Normalize`, the encoder's first layer.
        std: likewise.
        stem: channels of one more convolution with BatchNorm and ReLU in front, or None.
        squash: False leaves the sigmoid behind the bottleneck out; the feature is then unbounded.

    Raises:
        ConfigError: the cut is not offered, or a number of channels is below 1.
    """
    if type(cut) is not int or not 1 <= cut <= cuts:
        raise ConfigError(f"this network can be cut behind convolution 1 to {cuts}, not {cut!r}; set cut accordingly")
    for name, value in (("bottleneck", bottleneck), ("stem", stem)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; give at least 1 channel, or None for no such layer")
    front: OrderedDict[str, nn.Module] = OrderedDict(normalize=Normalize(mean, std, image_shape[0]))
    back: OrderedDict[str, nn.Module] = OrderedDict()
    channels = image_shape[0]
    if stem is not None:
        channels = _convolution(front, "stem", channels, stem)
    side, number = front, 0
    for entry in plan:
        if side is front and number == cut and entry != POOL:
            side = back
            if bottleneck is not None:
                front["bottleneck"] = nn.Conv2d(channels, bottleneck, 3, padding=1)
                if squash:
                    front["sigmoid"] = nn.Sigmoid()
                back["expand"] = nn.Conv2d(bottleneck, channels, 3, padding=1)
        if entry == POOL:
            side[f"pool{number}"] = nn.MaxPool2d(2)
        else:
            number += 1
            channels = _convolution(side, str(number), channels, int(entry))
    return front, back


def _convolution(layers: OrderedDict[str, nn.Module], number: str, inputs: int, outputs: int) -> int:
    layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
    layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
    layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return outputs
