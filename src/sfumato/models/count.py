"""Size and work of a network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sfumato.modes import evaluating

__all__ = ["count_macs", "count_parameters"]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable and frozen parameters; shared ones count once, buffers do not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of the convolutions and linear layers for one input.

    A convolution costs (output elements) x (input channels / groups) x (kernel elements); a transposed one (input
    elements) x (output channels / groups) x (kernel elements), because that many products exist; a linear layer
    (output elements) x (input features). Biases, normalisation, activations, pooling, and products written as
    functions instead of layers do not count. The module runs once, in evaluation mode and without gradients, and is
    left as it was.

    Args:
        module: takes a batch of one input.
        input_shape: shape of one input, without the batch dimension.
    """
    total = 0

    def convolution(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, _ConvNd)
        transposed = isinstance(layer, _ConvTransposeNd)
        positions = inputs[0].numel() if transposed else output.numel()
        partners = layer.out_channels if transposed else layer.in_channels
        total += positions * partners // layer.groups * math.prod(layer.kernel_size)

    def linear(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * inputs[0].shape[-1]

    hooks = [
        part.register_forward_hook(convolution if isinstance(part, _ConvNd) else linear)
        for part in module.modules()
        if isinstance(part, _ConvNd | nn.Linear)
    ]
    like = next(module.parameters(), torch.empty(0))
    try:
        with evaluating(module):
            module(torch.zeros((1, *input_shape), device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return total
