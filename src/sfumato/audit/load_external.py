"""Encoders and decoders from files of other programs: TorchScript and ONNX. For `.pt2` see `sfumato.split.programs`.

A `.pt` or `.onnx` file is a program, and auditing it means running it. It is run by PyTorch or ONNX Runtime, neither
of which is a sandbox. Audit files of people you trust.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, ConfigError, first_line
from sfumato.split.programs import Foreign, require

__all__ = ["load_onnx", "load_script"]


def load_script(path: Path) -> nn.Module:
    """A module that `torch.jit.save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or not TorchScript.
    """
    require(path)
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file ({first_line(error)}); weights alone are no encoder: export the whole "
            "module with torch.export.save or torch.jit.save"
        ) from error
    return Foreign(module.eval())


def load_onnx(path: Path) -> nn.Module:
    """An ONNX encoder under ONNX Runtime; it passes no gradients.

    Raises:
        ConfigError: ONNX Runtime is missing.
        CheckpointError: the file is missing, damaged, or has several inputs.
    """
    require(path)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "auditing an ONNX encoder needs ONNX Runtime: pip install 'sfumato[audit]', or export with torch.export"
        ) from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} is not an ONNX model that runs here ({first_line(error)})") from error
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
