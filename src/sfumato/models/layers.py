"""What all networks are made of: two halves of named layers, with the bottleneck at the cut."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError


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


class Shared(TypedDict, total=False):
    """What every network takes beside its cut, classes and image shape; `build` says what it means."""

    bottleneck: int | None
    stem: int | None
    squash: bool
    mean: float | Sequence[float]
    std: float | Sequence[float]


Halves = tuple[nn.Sequential, nn.Sequential]
"""Encoder and decoder."""


def halves(
    name: str,
    parts: Iterable[tuple[int | str, dict[str, nn.Module], int]],
    tail: Callable[[], dict[str, nn.Module]],
    *,
    cut: int | str,
    cuts: Sequence[int | str],
    num_classes: int,
    image_shape: tuple[int, int, int],
    least: int,
    instead: str = "enlarge the images",
    bottleneck: int | None = 8,
    stem: int | None = None,
    squash: bool = True,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.25,
) -> Halves:
    """Both halves of named layers; `tail` makes the last ones after all others.

    `parts`, from the image on: where a part can be cut off, its layers, and the channels that it gives.
    """
    if min(image_shape[1:]) < least:
        raise ConfigError(f"{name} needs images of at least {least}x{least}, got {image_shape}; {instead}")
    if type(cut) is not type(cuts[0]) or cut not in cuts:
        known = "convolution " * isinstance(cuts[0], int) + ", ".join(map(str, cuts))
        raise ConfigError(f"{name} can be cut behind {known}, not {cut!r}; set cut accordingly")
    for what, value in (("num_classes", num_classes), ("bottleneck", bottleneck), ("stem", stem)):
        if value is not None and value < 1:
            unit = "" if what == "num_classes" else " channel, or None for no such layer"
            raise ConfigError(f"{what} is {value}; give at least 1{unit}")
    front: OrderedDict[str, nn.Module] = OrderedDict(normalize=Normalize(mean, std, image_shape[0]))
    back: OrderedDict[str, nn.Module] = OrderedDict()
    side = front
    for where, layers, channels in parts:
        side.update(layers)
        if where == cut:
            side = back
            if bottleneck is not None:
                front["bottleneck"] = nn.Conv2d(channels, bottleneck, 3, padding=1)
                if squash:
                    front["sigmoid"] = nn.Sigmoid()
                back["expand"] = nn.Conv2d(bottleneck, channels, 3, padding=1)
    back.update(tail())
    return nn.Sequential(front), nn.Sequential(back)


def plain_parts(
    plan: Sequence[tuple[int, bool]], channels: int, stem: int | None
) -> Iterator[tuple[int | str, dict[str, nn.Module], int]]:
    """A plain network: the channels of each 3x3 convolution, and whether MaxPool2 follows; made when asked for."""
    if stem is not None:
        yield "stem", _convolution("stem", channels, stem), stem
        channels = stem
    for number, (width, pooled) in enumerate(plan, 1):
        layers = _convolution(str(number), channels, width)
        yield number, layers | ({f"pool{number}": nn.MaxPool2d(2)} if pooled else {}), width
        channels = width


def _convolution(number: str, inputs: int, outputs: int) -> dict[str, nn.Module]:
    return {
        f"conv{number}": nn.Conv2d(inputs, outputs, 3, padding=1),
        f"norm{number}": nn.BatchNorm2d(outputs),
        f"relu{number}": nn.ReLU(inplace=True),
    }
