"""Tensors and plain values in one safetensors file, written aside and renamed. Nothing is ever unpickled."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from sfumato.errors import CheckpointError, ConfigError, SfumatoWarning
from sfumato.files import require_regular, write_atomic

__all__ = [
    "FORMAT",
    "drop_previous",
    "flatten_state",
    "load",
    "load_newest",
    "load_optimizer_state",
    "optimizer_state",
    "resumable",
    "save",
    "save_next",
    "unflatten_state",
]

FORMAT = 1
_META = "sfumato"
_GROUP, _NUMBER = "group", "#number"


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write tensors, JSON-able `meta` and a digest of the tensors; the old file stays until the new one is complete.

    Args:
        path: of the file.
        tensors: by name.
        meta: plain values.
        keep: where to move the old file once the new one is complete; None replaces it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {_META: json.dumps({"format": FORMAT, **meta, "digest": _digest(plain)})}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=header)
        except SafetensorError as error:  # a full disk arrives as this
            raise OSError(str(error)) from error
        if keep is not None and path.exists():
            path.replace(keep)

    write_atomic(path, write)


def load(
    path: Path, *, remedy: str = "delete it and run the command again"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged (its digest tells of a single bit), foreign, or of a newer version
            of the format; where it is damaged, the sentence ends in the remedy.
    """
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as handle:
            header = (handle.metadata() or {}).get(_META)
            if header is None:
                raise CheckpointError(f"{path} is not a Sfumato checkpoint; give a run folder made by `sfumato train`")
            meta: dict[str, Any] = json.loads(header)
            if type(meta["format"]) is not int or meta["format"] < 1:
                raise ValueError(f"its format is {meta['format']!r}")
            if meta["format"] > FORMAT:
                raise CheckpointError(
                    f"{path} has format {meta['format']}, this version reads up to {FORMAT}; upgrade sfumato"
                )
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        if meta.pop("digest", None) not in (None, _digest(tensors)):  # earlier versions wrote none
            raise ValueError("its values are not those that were written")
        return tensors, meta
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; run `sfumato train` first") from None
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {remedy}") from error


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_next(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """`save` that keeps the checkpoint before this one beside it, for `load_newest`."""
    save(path, tensors, meta, keep=_previous(path))


def resumable(path: Path) -> bool:
    """Whether `load_newest` has something to read."""
    return path.exists() or _previous(path).exists()


def load_newest(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_next` wrote last, or, with a warning, what it wrote before that, where the last is damaged.

    Raises:
        CheckpointError: both are damaged.
    """
    previous = _previous(path)
    if not previous.exists():
        return load(path)
    if not path.exists():  # a crash between the two renames
        return load(previous)
    try:
        return load(path)
    except CheckpointError as error:
        found = load(previous, remedy=f"so is {path.name}: delete both and run the command again")
        warnings.warn(f"{error}, instead the checkpoint before it is used", SfumatoWarning, stacklevel=2)
        return found


def drop_previous(path: Path) -> None:
    """Remove the checkpoint before the last, where nothing is left to resume."""
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def flatten_state(prefix: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """Prefix the tensors of a state dict."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def unflatten_state(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer carries, as tensors: momentum, moments and step counts by parameter number and name, and the
    numbers of its parameter groups (a rate that a schedule has changed, betas), which a schedule of its own may move.

    Raises:
        ConfigError: the optimizer carries something else than tensors and numbers.
    """
    found: dict[str, Tensor] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                found[f"{index}.{name}"] = value
            elif isinstance(value, int | float):
                found[f"{index}.{name}{_NUMBER}"] = torch.tensor(value, dtype=_exact(value))
            elif value is not None:
                raise ConfigError(
                    f"{type(optimizer).__name__} carries a {type(value).__name__} ({name}), which no checkpoint holds; "
                    "take an optimizer that carries tensors and numbers, such as SGD or Adam"
                )
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if isinstance(value, Tensor | int | float):
                found[f"{_GROUP}.{number}.{name}"] = torch.as_tensor(value, dtype=_exact(value))
            elif isinstance(value, tuple) and value and all(isinstance(part, int | float) for part in value):
                found[f"{_GROUP}.{number}.{name}"] = torch.tensor(value, dtype=torch.float64)
    return found


def load_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave.

    Slots get the memory format of their parameter: fused optimizers walk both in memory order.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups: list[tuple[str, str, Tensor]] = []
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if index == _GROUP:
            number, _, name = name.partition(".")
            groups.append((number, name, value))
            continue
        parameter = parameters[int(index)]
        slot: Any = value
        if name.endswith(_NUMBER):
            name, slot = name.removesuffix(_NUMBER), value.item()
        elif value.shape == parameter.shape:
            slot = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = slot
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for number, name, value in groups:
        group = optimizer.param_groups[int(number)]
        present = group.get(name)
        if isinstance(present, Tensor):
            present.copy_(value)
        else:
            group[name] = tuple(value.tolist()) if value.ndim else value.item()


def _exact(value: Any) -> torch.dtype | None:
    """A type that holds a number as it is."""
    return torch.float64 if isinstance(value, float) else None
