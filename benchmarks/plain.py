"""The loop that everybody writes, and training and the attack's step against it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from sfumato import models
from sfumato.bench.timing import Ratio, take_turns
from sfumato.bench.training import CONFIG, stepper
from sfumato.compute import arranged, autocast, cpu_has_bf16, use_bf16
from sfumato.data import ImageSet
from sfumato.models import ReconstructionNet
from sfumato.training import TrainConfig

__all__ = ["PerImage", "attack_step", "throughput"]

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
        f"{batch / timings['ours']:.0f} against {batch / timings['plain']:.0f} images/s, "
        f"CPU {'with' if cpu_has_bf16() else 'without'} bf16",
    )
    return row, timings["ours"]


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


def throughput(rounds: int, images: ImageSet, config: TrainConfig = CONFIG) -> Ratio:
    """Images per second of the trainer over those of a plain fp32 NCHW loop with per-image transforms on the CPU."""
    ours, plain = stepper(config, images), plain_loop(images, config.batch_size)
    timings, ratio = take_turns({"ours": ours, "plain": plain}, rounds=rounds)
    bf16 = cpu_has_bf16()
    return Ratio(
        "training throughput",
        ratio("plain", "ours"),
        "plain PyTorch loop: fp32, NCHW, per-image transforms",
        1.8 if bf16 else 1.1,
        "at least",
        f"{config.batch_size / timings['ours']:.0f} against "
        f"{config.batch_size / timings['plain']:.0f} images/s, "
        f"CPU {'with' if bf16 else 'without'} bf16",
    )


class PerImage(Dataset[tuple[Tensor, int]]):
    """What a data pipeline of separate transforms does for each image."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.images.images[index].float() / 255
        x = nn.functional.pad(x, (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        x = x[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            x = x.flip(-1)
        mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
        return (x - mean[:, None, None]) / std[:, None, None], int(self.images.labels[index])


def plain_loop(images: ImageSet, batch: int = CONFIG.batch_size) -> Callable[[], object]:
    """One step of the loop that everybody writes: DataLoader, fp32, NCHW, SGD."""
    torch.manual_seed(0)
    edge, cloud = models.build("vgg11", cut=2, num_classes=10, image_shape=(3, 32, 32), bottleneck=8)
    net = nn.Sequential(edge, cloud).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(PerImage(images), batch_size=batch, shuffle=True, drop_last=True)
    state = {"batches": iter(loader)}

    def step() -> None:
        try:
            x, y = next(state["batches"])
        except StopIteration:
            state["batches"] = iter(loader)
            x, y = next(state["batches"])
        z = edge(x)
        loss = cross_entropy(cloud(z + 0.025 * torch.randn_like(z)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
