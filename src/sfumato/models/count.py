"""Size and work of a network."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import pooling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.errors import ConfigError, first_line
from sfumato.torch_utils import evaluating, kernel_flops

Counting = Literal["true", "paper"]
"""What `count_macs` counts."""

_POOLS = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)
_PRINTED = (_ConvNd, nn.Linear, _BatchNorm, nn.ReLU, *_POOLS)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable and frozen parameters; shared ones count once, buffers do not.

    >>> count_parameters(nn.Linear(3, 4))
    16
    """
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: Sequence[int], counting: Counting = "true") -> int:
    """Multiply-adds of a network for one input.

    `counting="true"`: those of the convolutions, matrix products and attentions that run (see `kernel_flops`). A
    convolution costs (output elements) x (input channels / groups) x (kernel elements); a transposed one (input
    elements) x (output channels / groups) x (kernel elements), because that many products exist; a linear layer
    (output elements) x (input features). Biases, normalisation, activations and pooling do not count.

    `counting="paper"`: what the paper's tables print, which is what the tool ptflops 0.7 counts. It adds 1 per output
    of a convolution or linear layer with a bias, 2 per input of a BatchNorm with weights (1 without), 2 per output of a
    ReLU layer and per input of a pooling layer (the tool sees the layer, and the function that the layer calls), 1 per
    output of a ReLU called as a function, and counts transposed convolutions as if every output had all products.
    Against the published numbers:

        network                                         true        paper's counting    published
        VGG11's encoder at the second convolution       21.23 M         21.92 M           21.9 M
        VGG11's decoder                                133.24 M        133.57 M          133.59 M
        ReconstructionNet from 8x8x8 to 3x32x32         54.28 M         90.66 M           90.66 M

    The 0.02 M that the decoder lacks are what one more ReLU behind its first convolution would add.

    The module runs once, in evaluation mode and without gradients, and is left as it was.

    Args:
        module: takes a batch of one input.
        input_shape: shape of one input, without the batch dimension.
        counting: `true` or `paper`.

    Raises:
        ConfigError: `counting` is unknown, or the module does not run on such an input.

    >>> count_macs(nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5))
    3240
    """
    if counting not in get_args(Counting):
        raise ConfigError(f"unknown counting {counting!r}; choose one of {', '.join(get_args(Counting))}")
    more = 0

    def printed(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        nonlocal more
        more += _printed_beside_products(layer, inputs[0] if inputs else next(iter(named.values())), output)

    layers = [part for part in module.modules() if isinstance(part, _PRINTED)] if counting == "paper" else []
    hooks = [layer.register_forward_hook(printed, with_kwargs=True) for layer in layers]
    like = next(module.parameters(), torch.empty(0))
    try:
        with evaluating(module), _ReluCalls() as relus, _Products() as products:
            module(torch.zeros((1, *input_shape), device=like.device, dtype=like.dtype))
    except Exception as error:  # whatever a user's module raises on what it does not take
        raise ConfigError(
            f"the module does not run on one floating-point input of shape {tuple(input_shape)} ({first_line(error)}); "
            "give the shape that it takes, or wrap it in a module that takes one such tensor"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return products.macs + more + (relus.elements if counting == "paper" else 0)


def _printed_beside_products(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(layer, _BatchNorm):
        return (2 if layer.affine else 1) * x.numel()
    if isinstance(layer, _POOLS):
        return 2 * x.numel()
    if isinstance(layer, nn.ReLU):
        return y.numel()  # and once more as the function that it calls
    more = y.numel() if layer.bias is not None else 0
    if isinstance(layer, _ConvTransposeNd):
        taken = y.numel() * layer.in_channels - x.numel() * layer.out_channels
        more += taken // layer.groups * math.prod(layer.kernel_size)
    return more


class _Products(TorchDispatchMode):
    """Sums the multiply-adds of the kernels."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.macs += kernel_flops(func, args, kwargs or {}, out) // 2
        return out


class _ReluCalls(TorchFunctionMode):
    """Sums the elements that pass through `torch.nn.functional.relu`."""

    elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.relu:
            self.elements += result.numel()
        return result
