"""Networks by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sfumato.errors import ConfigError
from sfumato.models.layers import Shared
from sfumato.models.resnet import resnet20
from sfumato.models.vgg import digits, vgg5, vgg11

_BUILDERS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "digits": digits,
    "resnet20": resnet20,
    "vgg5": vgg5,
    "vgg11": vgg11,
}


def names() -> tuple[str, ...]:
    """The networks that `build` knows."""
    return tuple(sorted(_BUILDERS))


def default_cut(name: str) -> int | str:
    """Where a network is cut if nobody says otherwise: the paper's cut for `vgg11` (2) and `resnet20`.

    Raises:
        ConfigError: the network is unknown.
    """
    cut: int | str = inspect.signature(_builder(name)).parameters["cut"].default
    return cut


def build(
    name: str,
    *,
    cut: int | str,
    num_classes: int,
    image_shape: Sequence[int],
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with fresh weights, drawn from torch's global generator: seed it for repeatable ones.

    Args:
        name: one of `names()`.
        cut: the encoder ends behind this convolution, counted from 1 (`digits`, `vgg5`, `vgg11`), or behind the part of
            this name (`resnet20`).
        num_classes: outputs of the decoder.
        image_shape: (C, H, W).
        options: `bottleneck` (8), the channels of the feature: the encoder then ends in Conv3x3(C -> b) and a sigmoid,
            which bounds the feature to (0, 1), and the decoder begins with Conv3x3(b -> C). None gives the raw ReLU
            feature: unbounded, so the channel needs a `clip_norm` for its noise to mean anything. `squash=False` leaves
            the sigmoid out; then it needs one, too. `stem`: channels of one more convolution with batch normalisation
            and ReLU in front (PATROL's 16), or None. `mean` (0.5) and `std` (0.25): subtracted from the images, which
            are in [0, 1], and dividing them; one number or one per channel. `width` (16): of `digits` alone.

    Raises:
        ConfigError: the network or an option is unknown, or an argument is out of its range.

    >>> import torch
    >>> edge, cloud = build("digits", cut=2, num_classes=10, image_shape=(1, 8, 8))
    >>> edge(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 8, 4, 4])
    """
    builder = _builder(name)
    own = set(inspect.signature(builder).parameters) - {"cut", "num_classes", "image_shape", "shared"}
    known = sorted(own | set(Shared.__annotations__))
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"network {name!r} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    return builder(cut=cut, num_classes=num_classes, image_shape=image_shape, **options)


def _builder(name: str) -> Callable[..., tuple[nn.Module, nn.Module]]:
    if name not in _BUILDERS:
        raise ConfigError(f"unknown network {name!r}; known are {', '.join(names())}")
    return _BUILDERS[name]
