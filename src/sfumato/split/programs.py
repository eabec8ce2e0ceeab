"""Modules as programs in files, written and read through `torch.export`.

A `.pt2` archive is a program, and opening one may already run whatever its author put there: PyTorch unpickles what the
archive says is pickled, and evaluates its symbolic sizes as expressions. A filter in front of it would only pretend to
help. Load files of people you trust.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sfumato.errors import CheckpointError, ConfigError, first_line
from sfumato.torch_utils import evaluating

__all__ = ["Foreign", "load_program", "random_inputs", "require", "save_program"]


class Foreign(nn.Module):
    """A module that knows neither training mode nor, if it was exported so, other batches than of one size.

    Args:
        inner: called with (n, C, H, W); its parameters stay reachable.
        batch: the only batch size it takes, or None.
    """

    def __init__(self, inner: Any, batch: int | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.batch = batch
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device where nothing else does

    def train(self, mode: bool = True) -> "Foreign":
        """Exported modules have one mode; asking them for another raises."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.batch is None or len(x) == self.batch:
            out: Tensor = self.inner(x)
            return out
        parts = []
        for part in x.split(self.batch):
            missing = self.batch - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self.inner(padded)[: len(part)])
        return torch.cat(parts)


def random_inputs(size: int, shape: tuple[int, ...], seed: int, tokens: int | None = None) -> Tensor:
    """(size, *shape) numbers in [0, 1), or whole numbers below `tokens`."""
    generator = torch.Generator().manual_seed(seed)
    if tokens is not None:
        return torch.randint(tokens, (size, *shape), generator=generator)
    return torch.rand((size, *shape), generator=generator)


def save_program(
    module: nn.Module, shape: tuple[int, ...], path: Path, name: str, *, tokens: int | None = None
) -> None:
    """Write a module's evaluation mode as a `.pt2` archive that takes batches of any size, in float32 on the CPU.

    Neither images of the user's nor names and lines of the source go into the file.

    Args:
        module: (N, *shape) -> one tensor (N, ...); it stays as it is.
        shape: of one input, without the batch.
        path: of the file.
        name: how the module is called in messages.
        tokens: of a module that takes whole numbers, how many there are.

    Raises:
        ConfigError: the module cannot be recorded for every batch size.
    """
    own = copy.deepcopy(module).cpu().float()
    example = random_inputs(2, shape, 0, tokens)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with evaluating(own):
            program = torch.export.export(own, (example,), dynamic_shapes=batch)
    except Exception as error:  # whatever the recorder of this version of PyTorch raises on the user's module
        raise ConfigError(
            f"the {name} cannot be recorded by torch.export for inputs (N, {', '.join(map(str, shape))}) "
            f"({first_line(error)}); its forward must not depend on the values or the number of the inputs"
        ) from error
    for part in program.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def load_program(path: Path) -> nn.Module:
    """A program that `torch.export.save` wrote. Opening it runs it: the file has to come from somebody you trust.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version of PyTorch.
    """
    require(path)
    try:
        program = torch.export.load(str(path))
        inner = program.module()
    except Exception as error:  # whatever the deserialiser of this version of PyTorch raises
        raise CheckpointError(
            f"{path} cannot be loaded as an exported program ({first_line(error)}); save it again with this version "
            f"of PyTorch ({torch.__version__})"
        ) from error
    batch = None
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            first = node.meta["val"].shape[0]
            batch = first if isinstance(first, int) else None
    return Foreign(inner, batch)


def require(path: Path) -> None:
    """CheckpointError unless there is such a file."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the file of an exported encoder")
