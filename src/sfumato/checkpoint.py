"""Tensors and plain values in one safetensors file, written aside and renamed. Nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from sfumato.errors import CheckpointError
from sfumato.files import write_atomic

__all__ = [
    "FORMAT",
    "flatten_state",
    "load",
    "load_optimizer_state",
    "optimizer_state",
    "save",
    "unflatten_state",
]

FORMAT = 1
_META = "sfumato"


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-able `meta`; the old file stays until the new one is complete.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    header = {_META: json.dumps({"format": FORMAT, **meta})}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=header)
        except SafetensorError as error:  # a full disk arrives as this
            raise OSError(str(error)) from error

    write_atomic(path, write)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or of a newer version of the format.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            header = (handle.metadata() or {}).get(_META)
            if header is None:
                raise CheckpointError(f"{path} is not a Sfumato checkpoint; give a run folder made by `sfumato train`")
            meta: dict[str, Any] = json.loads(header)
            if meta["format"] > FORMAT:
                raise CheckpointError(
                    f"{path} has format {meta['format']}, this version reads up to {FORMAT}; upgrade sfumato"
                )
            return {name: handle.get_tensor(name) for name in handle.keys()}, meta  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; run `sfumato train` first") from None
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and run the command again") from error


def flatten_state(prefix: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """Prefix the tensors of a state dict."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def unflatten_state(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors that an optimizer carries (momentum, moments, step counts), by parameter number and name."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, slots in state.items()
        for name, value in slots.items()
        if value is not None
    }


def load_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave; the parameter groups keep their settings.

    Slots get the memory format of their parameter: fused optimizers walk both in memory order.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
