"""Networks by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sfumato.errors import ConfigError
from sfumato.models.digits import digits
from sfumato.models.vgg import vgg11

__all__ = ["build", "names"]

_BUILDERS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {"digits": digits, "vgg11": vgg11}


def names() -> tuple[str, ...]:
    """The networks that `build` knows."""
    return tuple(sorted(_BUILDERS))


def build(
    name: str,
    *,
    cut: int,
    num_classes: int,
    image_shape: Sequence[int],
    bottleneck: int | None = 8,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with fresh weights, drawn from torch's global generator: seed it for repeatable ones.

    Args:
        name: one of `names()`.
        cut: the encoder ends behind this convolution, counted from 1.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W).
        bottleneck: channels of the feature, bounded to (0, 1); None leaves the feature raw and unbounded.
        options: further arguments of that network (`mean`, `std`, `width`, `stem`).

    Raises:
        ConfigError: the network or an option is unknown, or an argument is out of its range.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"unknown network {name!r}; known are {', '.join(names())}")
    builder = _BUILDERS[name]
    known = sorted(set(inspect.signature(builder).parameters) - {"cut", "num_classes", "image_shape", "bottleneck"})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"network {name!r} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    return builder(cut=cut, num_classes=num_classes, image_shape=image_shape, bottleneck=bottleneck, **options)
