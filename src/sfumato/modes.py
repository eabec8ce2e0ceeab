"""Ways of running: modules in evaluation mode for a moment, and tensors at whose values one may look."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "free_to_look"]

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
