"""The encoder for ExecuTorch with XNNPACK: `encoder.pte`, for applications without ONNX Runtime."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.deploy.halves import EncoderHalf
from sfumato.errors import BundleError, ConfigError

__all__ = ["PTE", "pte_parity", "to_pte"]

PTE = "encoder.pte"

_TOLERANCE = 1e-5
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def to_pte(encoder: EncoderHalf, examples: Sequence[Tensor]) -> bytes:
    """Lower `(image, noise, *uniforms) -> feature` for one image, as a device encodes.

    The noise is an input here as well. XNNPACK folds batch normalisations into the convolutions in front of them; one
    that it leaves is replaced by a multiplication and an addition, so that no running statistics are in the file.

    Args:
        encoder: in evaluation mode.
        examples: image, noise and masks, each with a batch of at least 1, of which the first row is used.

    Raises:
        ConfigError: the package is missing, or the network cannot be lowered.
        BundleError: the network would draw random numbers.
    """
    rows = tuple(one[:1].contiguous() for one in examples)
    data = _lower(encoder, rows)
    left = {name for name, part in encoder.named_modules() if isinstance(part, _NORMS) and _holds(data, part)}
    if left:
        for name in left:
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, _Affine(encoder.get_submodule(name)))
        data = _lower(encoder, rows)
    return data


def pte_parity(data: bytes, encoder: EncoderHalf, batches: Sequence[Sequence[Tensor]]) -> float:
    """Largest difference of ExecuTorch's feature from PyTorch's over `max(1, largest value)`, image by image.

    Args:
        data: the file.
        encoder: as it was lowered.
        batches: image, noise and masks of several images.

    Raises:
        BundleError: it is above 1e-5, or ExecuTorch cannot run the file.
    """
    from executorch.runtime import Runtime

    worst = 0.0
    try:
        method = Runtime.get().load_program(data).load_method("forward")
        with torch.no_grad():
            for batch in batches:
                for index in range(len(batch[0])):
                    row = [one[index : index + 1].contiguous() for one in batch]
                    wanted, found = encoder(*row), method.execute(row)[0]
                    if found.shape != wanted.shape:
                        raise BundleError(f"{PTE} gives {tuple(found.shape)} where PyTorch gives {tuple(wanted.shape)}")
                    gap = float((found - wanted).abs().max() / max(1.0, float(wanted.abs().max())))
                    worst = gap if math.isnan(gap) else max(worst, gap)
    except RuntimeError as error:
        raise BundleError(f"ExecuTorch cannot run {PTE} ({_line(error)}); export without --executorch") from error
    if not worst <= _TOLERANCE:
        raise BundleError(
            f"{PTE} differs from PyTorch's encoder by {worst:.2g}, more than {_TOLERANCE:g}; leave --executorch out"
        )
    return worst


class _Affine(nn.Module):
    """A batch normalisation in evaluation mode as `x scale + shift`, from float64."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
        beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
        scale = gamma.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        self._shape = {nn.BatchNorm1d: (-1,), nn.BatchNorm2d: (-1, 1, 1), nn.BatchNorm3d: (-1, 1, 1, 1)}[type(norm)]
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", (beta.detach().double() - norm.running_mean.double() * scale).float())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.scale.view(self._shape) + self.shift.view(self._shape)
        return result


def _lower(encoder: EncoderHalf, rows: tuple[Tensor, ...]) -> bytes:
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError:
        raise ConfigError(f"{PTE} needs the package executorch; run `pip install 'sfumato[executorch]'`") from None
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(encoder, rows)
            _refuse_random(program)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except BundleError:
        raise
    except Exception as error:  # exporter and lowering have many types, and all of them mean this
        raise ConfigError(
            f"ExecuTorch cannot lower this encoder ({_line(error)}); export it without --executorch"
        ) from error


def _refuse_random(program: Any) -> None:
    for node in program.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise BundleError(
                f"the encoder draws random numbers itself ({node.target}): noise has to be an input; export the run "
                "with `sfumato export`"
            )


def _holds(data: bytes, norm: Any) -> bool:
    """Whether the running statistics of a normalisation are in a file."""
    return any(np.asarray(part.detach()).tobytes() in data for part in (norm.running_mean, norm.running_var))


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
