"""Running modules in evaluation mode for a moment."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating"]


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
