"""A step of the decoding attack against the plain loop that everybody writes."""

from collections.abc import Callable

import torch
from torch import nn

from sfumato.bench.timing import Ratio, take_turns
from sfumato.compute import arranged, autocast, cpu_has_bf16, use_bf16
from sfumato.models import ReconstructionNet

__all__ = ["attack_step"]

_FEATURE, _IMAGE, _BATCH = (8, 8, 8), (3, 32, 32), 256


def attack_step(rounds: int, batch: int = _BATCH) -> tuple[Ratio, float]:
    """Forward, backward and Adam of the reconstruction network at batch 256: plain over ours.

    Returns:
        The row, and the seconds of our step.
    """
    timings, ratio = take_turns(
        {"ours": _stepper(batch, plain=False), "plain": _stepper(batch, plain=True)}, rounds=rounds
    )
    row = Ratio(
        f"attack step, batch {batch}",
        ratio("plain", "ours"),
        "the same step in fp32, NCHW, unfused Adam",
        None,
        "at least",
        f"{batch / timings['ours'].median:.0f} against {batch / timings['plain'].median:.0f} images/s, "
        f"CPU {'with' if cpu_has_bf16() else 'without'} bf16",
    )
    return row, timings["ours"].median


def _stepper(batch: int, *, plain: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    net: nn.Module = ReconstructionNet(_FEATURE, _IMAGE)
    bf16 = False
    if not plain:
        net = arranged(net, torch.device("cpu"), _FEATURE)
        bf16 = use_bf16("auto", torch.device("cpu"), net, _FEATURE)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4, fused=not plain)
    z, x = torch.rand(batch, *_FEATURE), torch.rand(batch, *_IMAGE)

    def step() -> None:
        with autocast(torch.device("cpu"), bf16):
            x_hat = net(z)
        loss = (x_hat.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
