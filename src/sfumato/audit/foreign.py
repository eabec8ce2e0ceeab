"""Encoders and decoders from files of other programs: torch.export, TorchScript, ONNX.

A `.pt2`, `.pt` or `.onnx` file is a program, and auditing it means running it. A `.pt2` archive could in addition hold
pickled objects or compiled libraries, which may run anything while they are read: archives with anything but a graph
and plain tensors are refused. What remains is run by PyTorch or ONNX Runtime, neither of which is a sandbox. Audit
files of people you trust.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, ConfigError

__all__ = ["load_exported", "load_onnx", "load_script"]


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


def load_exported(path: Path) -> nn.Module:
    """A program that `torch.export.save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of an older format, or holds pickled objects.
    """
    _refuse_pickles(path)
    try:
        program = torch.export.load(str(path))
        inner = program.module()
    except Exception as error:  # whatever the deserialiser of this version of PyTorch raises
        raise CheckpointError(
            f"{path} cannot be loaded as an exported program ({_first_line(error)}); save it again with this version "
            f"of PyTorch ({torch.__version__})"
        ) from error
    batch = None
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            first = node.meta["val"].shape[0]
            batch = first if isinstance(first, int) else None
    return Foreign(inner, batch)


def load_script(path: Path) -> nn.Module:
    """A module that `torch.jit.save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or not TorchScript.
    """
    _require(path)
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file ({_first_line(error)}); weights alone are no encoder: export the whole "
            "module with torch.export.save or torch.jit.save"
        ) from error
    return Foreign(module.eval())


def load_onnx(path: Path) -> nn.Module:
    """An ONNX encoder under ONNX Runtime; it passes no gradients.

    Raises:
        ConfigError: ONNX Runtime is missing.
        CheckpointError: the file is missing, damaged, or has several inputs.
    """
    _require(path)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "auditing an ONNX encoder needs ONNX Runtime: pip install 'sfumato[audit]', or export with torch.export"
        ) from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} is not an ONNX model that runs here ({_first_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise CheckpointError(f"{path} has {len(inputs)} inputs ({names}); an encoder takes the image alone")
    batch = inputs[0].shape[0]
    return Foreign(_Session(session, inputs[0].name), batch if isinstance(batch, int) else None)


class _Session(nn.Module):
    def __init__(self, session: Any, name: str) -> None:
        super().__init__()
        self.session = session
        self.name = name

    def forward(self, x: Tensor) -> Any:
        found = self.session.run(None, {self.name: x.detach().cpu().numpy().astype(np.float32)})
        tensors = [torch.from_numpy(np.asarray(value)).to(x.device) for value in found]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)


# What an archive of a graph and plain tensors consists of; each name stands behind the archive's own root folder.
_PLAIN = re.compile(
    r"[^/]+/(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|archive_format|archive_version|byteorder|version"
    r"|\.data/\w+|\.format_version|\.storage_alignment|extra/.*)"
)


def _refuse_pickles(path: Path) -> None:
    """A `.pt2` archive says itself which of its entries would have to be unpickled; no other entry may be there.

    Sample inputs are read by PyTorch with `weights_only=True`.
    """
    _require(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            configs = [json.loads(archive.read(name)) for name in names if name.endswith("_config.json")]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a file of torch.export.save ({error})") from None
    if not any(name.endswith("/archive_format") for name in names):
        raise CheckpointError(f"{path} is not a .pt2 archive of torch.export.save, or of an older format; save it anew")
    strange = [name for name in names if not _PLAIN.fullmatch(name)]
    pickled = [
        name for config in configs for name, entry in config.get("config", {}).items() if entry.get("use_pickle")
    ]
    if strange or pickled:
        raise CheckpointError(
            f"{path} holds more than a graph and plain tensors ({(strange + pickled)[0]}), which could run anything "
            "while it is read; export plain tensors only"
        )


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the file of an exported encoder")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
