"""Ways of running: modules in evaluation mode for a moment, tensors at whose values one may look, work that is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "free_to_look", "kernel_flops"]

_AT_HAND = {"cpu"}  # device types; emptied by tests that pretend to be on a GPU


def free_to_look(tensor: Tensor) -> bool:
    """Whether looking at a value costs nothing. On a GPU it waits for all work before, and a step never does."""
    return tensor.device.type in _AT_HAND


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode inside; afterwards every submodule has the mode it had.

    `module.train()` afterwards would not do: it also wakes the layers that somebody froze in evaluation mode.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def kernel_flops(kernel: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Floating-point operations of one kernel: two for each multiply-add of a convolution, matrix product or attention.

    Other operations do not count. The figures are those of `torch.utils.flop_counter`, whose registry lacks the
    attention of CPUs.

    Args:
        kernel: as a `TorchDispatchMode` gets it, with what it was called with and what it gave.
        args: its positional arguments.
        kwargs: its named arguments.
        out: its result.
    """
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count

    packet = kernel._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    return 0
