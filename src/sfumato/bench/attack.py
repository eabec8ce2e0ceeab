"""A step of the decoding attack against the plain loop that everybody writes."""

from collections.abc import Callable

import torch
from torch import nn

from sfumato.bench.rows import Row
from sfumato.bench.timing import take_turns
from sfumato.compute import autocast, channels_last, cpu_has_bf16, use_bf16
from sfumato.models import ReconstructionNet

__all__ = ["attack_step"]

_FEATURE, _IMAGE, _BATCH = (8, 8, 8), (3, 32, 32), 256


def attack_step(rounds: int) -> Row:
    """Forward, backward and Adam of the reconstruction network at batch 256: plain over ours."""
    timings, ratio = take_turns({"ours": _stepper(plain=False), "plain": _stepper(plain=True)}, rounds=rounds)
    return Row(
        "attack step, batch 256",
        ratio("plain", "ours"),
        "the same step in fp32, NCHW, unfused Adam",
        None,
        "at least",
        f"{_BATCH / timings['ours'].median:.0f} against {_BATCH / timings['plain'].median:.0f} images/s, "
        f"CPU {'with' if cpu_has_bf16() else 'without'} bf16",
    )


def _stepper(*, plain: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    net: nn.Module = ReconstructionNet(_FEATURE, _IMAGE)
    bf16 = False
    if not plain:
        net = channels_last(net)
        bf16 = use_bf16("auto", torch.device("cpu"), net, _FEATURE)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4, fused=not plain)
    z, x = torch.rand(_BATCH, *_FEATURE), torch.rand(_BATCH, *_IMAGE)

    def step() -> None:
        with autocast(torch.device("cpu"), bf16):
            x_hat = net(z)
        loss = (x_hat.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
