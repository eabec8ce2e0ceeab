"""Where and how to compute: bfloat16 only where the hardware has it, the order of memory that it prefers."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from sfumato.errors import ConfigError, SfumatoWarning
from sfumato.models import count_macs

__all__ = [
    "Engine",
    "Precision",
    "arranged",
    "autocast",
    "cpu_has_bf16",
    "device_of",
    "kernels",
    "memory_format",
    "use_bf16",
]

Precision = Literal["auto", "fp32", "bf16"]
Engine = Literal["auto", "eager", "compiled", "deterministic"]

# Below this many multiply-adds per sample the casts cost more than the faster products save.
_WORTH_BF16 = 5_000_000
_LARGE_MAP = 16


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); emulation is slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)


def device_of(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`.

    Apple's `mps` gives the CPU, with one sentence: sums, moments and closed-form attacks are computed in float64, which
    MPS does not have. `auto` never takes it.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; give auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but PyTorch sees no GPU; use --device cpu")
    if device.type == "mps":
        there = torch.backends.mps.is_available()
        why = "it has no float64, in which sums, moments and bounds are computed" if there else "this machine has none"
        warnings.warn(
            f"device mps is not used, since {why}; computing on the CPU instead", SfumatoWarning, stacklevel=2
        )
        return torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; give auto, cpu or cuda")
    return device


def use_bf16(precision: Precision, device: torch.device, net: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether to autocast `net` to bfloat16: as told, or where the hardware has it and the network is large enough."""
    if precision != "auto":
        return precision == "bf16"
    has = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
    return has and count_macs(net, input_shape) >= _WORTH_BF16


@contextlib.contextmanager
def kernels(device: torch.device, engine: Engine) -> Iterator[None]:
    """Choose kernels for what runs inside, and restore the choice: the fastest ones, or reproducible ones.

    On a CPU kernels are reproducible anyway. On a GPU `deterministic` forbids kernels whose sums depend on the order in
    which threads arrive; other engines let cuDNN try out its algorithms once per shape.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if engine == "deterministic":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = engine != "deterministic"
    torch.use_deterministic_algorithms(engine == "deterministic" or before[1])
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


def memory_format(device: torch.device, shape: tuple[int, ...]) -> torch.memory_format:
    """The order in which the convolutions of a network are fastest that takes inputs of this shape (C, H, W).

    Channels last, but for small maps on CPUs without bfloat16: float32 is all they have, and there oneDNN's
    convolutions of many channels on 8x8 maps and smaller are up to 1.6 times as slow in that order, while those of few
    channels on large maps are up to three times as fast (measured on an AVX-512 CPU).
    """
    small = not shape or shape[-1] < _LARGE_MAP
    if device.type == "cpu" and small and not cpu_has_bf16():
        return torch.contiguous_format
    return torch.channels_last


def arranged(module: nn.Module, device: torch.device, shape: tuple[int, ...]) -> nn.Module:
    """The module on the device, its convolution weights in the order that suits inputs of this shape (C, H, W)."""
    return module.to(device).to(memory_format=memory_format(device, shape))  # type: ignore[call-overload]
