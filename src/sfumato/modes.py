"""Ways of running: modules in evaluation mode for a moment, and tensors at whose values one may look."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "free_to_look", "wake"]

_AT_HAND = {"cpu"}  # device types; emptied by tests that pretend to be on a GPU


def free_to_look(tensor: Tensor) -> bool:
    """Whether looking at a value costs nothing. On a GPU it waits for all work before, and a step never does."""
    return tensor.device.type in _AT_HAND


@contextmanager
def evaluating(*modules: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode inside, and no gradients unless asked for; afterwards every submodule has the mode it had.

    `module.train()` afterwards would not do: it also wakes the layers that somebody froze in evaluation mode.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def wake(module: nn.Module) -> None:
    """Training mode for a module that is in evaluation mode as a whole, such as one that was loaded from a file.

    Where at least one layer with parameters or buffers is in training mode, those that are not were frozen on purpose
    (batch normalisation that is not to be fine-tuned), and every layer stays as it is.
    """
    holders = [part for part in module.modules() if [*part.parameters(recurse=False), *part.buffers(recurse=False)]]
    if not any(part.training for part in holders):
        module.train()
