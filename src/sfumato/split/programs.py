"""Modules as programs in files, written and read through `torch.export`.

A `.pt2` archive is a program, and opening one may already run whatever its author put there: PyTorch unpickles what the
archive says is pickled, and evaluates its symbolic sizes as expressions. A filter in front of it would only pretend to
help. Load files of people you trust.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sfumato.errors import CheckpointError, ConfigError, first_line
from sfumato.split.verify import diagnosis
from sfumato.torch_utils import evaluating

__all__ = ["Foreign", "compare", "load_program", "random_inputs", "require", "rows", "save_program"]

_TOLERANCE = 1e-4  # of the largest value; other kernels round differently
_BATCHES = (1, 3)


class Foreign(nn.Module):
    """A module that knows neither training mode nor, if it was exported so, other batches than of one size (`batch`).

    `shared` are the names of what it takes beside its input, in their order.
    """

    def __init__(self, inner: Any, batch: int | None = None, shared: Sequence[str] = ()) -> None:
        super().__init__()
        self.inner = inner
        self.batch = batch
        self.shared = tuple(shared)
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device where nothing else does

    def train(self, mode: bool = True) -> "Foreign":
        """Exported modules have one mode; asking them for another raises."""
        self.training = mode
        return self

    def forward(self, x: Tensor, **shared: Tensor) -> Tensor:
        if set(shared) != set(self.shared):
            raise ConfigError(
                f"the saved model takes {', '.join(self.shared) or 'nothing'} beside its input and was given "
                f"{', '.join(shared) or 'nothing'}; pass by name what save_split got as example_kwargs"
            )
        if self.batch is None or len(x) == self.batch:
            out: Tensor = self.inner(x, *(shared[name] for name in self.shared))
            return out
        parts = []
        for part in x.split(self.batch):
            missing = self.batch - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self.inner(padded)[: len(part)])
        return torch.cat(parts)


class _ByPlace(nn.Module):
    """A module that is given by place what it takes by name, as a recorded program is."""

    def __init__(self, inner: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.names = inner, tuple(names)

    def forward(self, x: Tensor, *shared: Tensor) -> Tensor:
        out: Tensor = self.inner(x, **dict(zip(self.names, shared, strict=True)))
        return out


def random_inputs(size: int, shape: tuple[int, ...], seed: int, tokens: int | None = None) -> Tensor:
    """(size, *shape) numbers in [0, 1), or whole numbers below `tokens`."""
    generator = torch.Generator().manual_seed(seed)
    if tokens is not None:
        return torch.randint(tokens, (size, *shape), generator=generator)
    return torch.rand((size, *shape), generator=generator)


def save_program(module: nn.Module, example: Tensor, path: Path, name: str, shared: Mapping[str, Tensor]) -> None:
    """Write a module's evaluation mode as a `.pt2` archive that takes batches of any size, in float32 on the CPU.

    The module is called with a batch such as `example` and `shared` by name, (2, ...) each; the program takes those by
    place, in this order. Neither the example nor names and lines of the source go into the file. `name` is how the
    module is called in messages.
    """
    own = copy.deepcopy(module).cpu().float()
    batch = {0: torch.export.Dim("batch", min=1)}
    shapes: Any = (batch, (batch,) * len(shared)) if shared else (batch,)
    try:
        with evaluating(own):
            recorded = _ByPlace(own, tuple(shared)) if shared else own
            program = torch.export.export(recorded, (example, *shared.values()), dynamic_shapes=shapes)
    except Exception as error:  # whatever the recorder of this version of PyTorch raises on the user's module
        raise ConfigError(
            f"the {name} cannot be recorded by torch.export for inputs (N, {', '.join(map(str, example.shape[1:]))}) "
            f"({first_line(error)}); its forward must not depend on the values or the number of the inputs"
        ) from error
    for part in program.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def load_program(path: Path, shared: Sequence[str] = ()) -> nn.Module:
    """A program that `torch.export.save` wrote. Opening it runs it: the file has to come from somebody you trust.

    `shared` names what it takes beside its input.
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
    return Foreign(inner, batch, shared)


def require(path: Path) -> None:
    """CheckpointError unless there is such a file."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the file of an exported encoder")


def rows(part: Tensor, count: int) -> Tensor:
    """So many rows, from the first on and again."""
    return part[torch.arange(count, device=part.device) % len(part)]


Half = tuple[str, nn.Module, Path]
"""What a half is called, its module, and the file of its program."""


@torch.no_grad()
def compare(edge: Half, cloud: Half, shape: tuple[int, ...], tokens: int | None, shared: Mapping[str, Tensor]) -> None:
    """Refuse programs that do not compute what the modules do, on random inputs in batches of several sizes."""
    like = next((part for half in (edge, cloud) for part in half[1].parameters()), torch.empty(0))
    programs = [load_program(path, tuple(shared)) for _, _, path in (edge, cloud)]

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(like if tensor.is_floating_point() else like.device)

    with evaluating(edge[1], cloud[1]):
        edge[1].to(like.device)
        for size in _BATCHES:
            given = random_inputs(size, shape, size, tokens)
            plain = {name: rows(part.cpu(), size) for name, part in shared.items()}
            own = {name: moved(part) for name, part in plain.items()}
            for (name, module, _), program in zip((edge, cloud), programs, strict=True):
                expected = module(moved(given).clone(), **own).float().cpu()  # some layers work in place
                found = program(given, **plain)
                scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
                gap = float((found - expected).abs().max()) if found.shape == expected.shape else math.inf
                if not gap <= _TOLERANCE * scale:
                    first = moved(given).clone()
                    cause = diagnosis(lambda both: module(both[0], **both[1]), (first, own), (first.flip(-1), own))  # noqa: B023
                    raise ConfigError(
                        f"the recorded {name} differs from the module by {gap:.2g} on a batch of {size}: "
                        f"{cause or 'its forward does what torch.export does not see; take that out of it'}"
                    )
                given = expected
