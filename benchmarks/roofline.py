"""Achieved against possible: the arithmetic of a step over what this machine's matrix products reach, in one run."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sfumato import models
from sfumato.models import ReconstructionNet, count_macs

__all__ = ["ceilings", "roofline"]

_SIDE = 2048
_COPIED = 1 << 26


def ceilings(device: torch.device, rounds: int, *, quick: bool = False) -> dict[str, float]:
    """FLOP/s of square matrix products by type, and bytes/s of a copy (read and written)."""
    side, copied = (256, 1 << 18) if quick else (_SIDE if device.type == "cpu" else 8192, _COPIED)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        found[name] = 2.0 * side**3 / _usual(partial(torch.matmul, a, b), device, rounds)
    source = torch.rand(copied, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2.0 * source.numel() * 4 / _usual(lambda: target.copy_(source), device, rounds)
    return found


def roofline(
    device: torch.device, step_seconds: float, attack_seconds: float, bf16: bool, rounds: int, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Lines for the training step and the attack's step: achieved FLOP/s, the ceiling, their ratio.

    Counted are the multiply-adds of convolutions and linear layers, twice for two operations, three times for forward
    and both gradients; batch normalisation, noise and optimizer are left out, so the true share is a little higher.
    """
    found = ceilings(device, rounds, quick=quick)
    ceiling = found["bfloat16" if bf16 else "float32"]
    edge, cloud = models.build("vgg11", cut=2, num_classes=10, image_shape=(3, 32, 32), bottleneck=8)
    training = count_macs(edge, (3, 32, 32)) + count_macs(cloud, (8, 8, 8))
    reconstruction = count_macs(ReconstructionNet((8, 8, 8), (3, 32, 32)), (8, 8, 8))
    lines = [
        _line("training step, VGG11, batch 128", 6.0 * training * 128, step_seconds, ceiling, bf16),
        _line("decoding attack's step, batch 256", 6.0 * reconstruction * 256, attack_seconds, ceiling, bf16),
    ]
    return [*lines, {"what": "ceilings", **found}]


def _line(what: str, operations: float, seconds: float, ceiling: float, bf16: bool) -> dict[str, Any]:
    achieved = operations / seconds
    return {
        "what": what,
        "achieved": achieved,
        "ceiling": ceiling,
        "share": achieved / ceiling,
        "type": "bfloat16" if bf16 else "float32",
    }


def _usual(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median of rounds; ceilings should be what can be had, not the luckiest moment."""
    taken = []
    for index in range(rounds + 2):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= 2:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)
