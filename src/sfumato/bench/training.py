"""The training step with and without CEM, and training against a plain PyTorch loop."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from sfumato import models
from sfumato.bench.timing import Ratio, take_turns
from sfumato.compute import cpu_has_bf16
from sfumato.data import ImageSet
from sfumato.defenses import CEMDefense
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model
from sfumato.training.evaluate import collect_features

__all__ = [
    "CONFIG",
    "PerImage",
    "cem_step",
    "feature_pass",
    "plain_loop",
    "random_images",
    "stepper",
    "throughput",
]

CONFIG = TrainConfig(data="cifar10", data_dir=".", model="vgg11", noise_std=0.025, hold_out=0.0)
_WITHIN_TARGET = ("full (default)", "diagonal", "spherical")
_FORMS: dict[str, dict[str, Any]] = {
    "full (default)": {},
    "diagonal": {"covariance": "diagonal"},
    "spherical": {"covariance": "spherical"},
    "full, literal scaling": {"scaling": "literal"},
    "as published": {"scaling": "as_published", "covariance": "spherical", "clusters_per_class": 5},
    "full, running update": {"update": "running"},
}


def random_images(count: int, classes: int = 10) -> ImageSet:
    """Images of CIFAR-10's shape; speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % classes, tuple(str(c) for c in range(classes)))


def cem_step(rounds: int, images: ImageSet, config: TrainConfig = CONFIG) -> tuple[list[Ratio], float]:
    """The step of VGG11 cut at its second convolution, batch 128, D = 512, k = 30: with CEM over without.

    Returns:
        The rows and the seconds of a step without CEM.
    """
    variants: dict[str, Callable[[], object]] = {"without": stepper(config, images)}
    for name, options in _FORMS.items():
        variants[name] = stepper(replace(config, cem=True, **options), images)
    timings, ratio = take_turns(variants, rounds=rounds)
    base = timings["without"].median
    rows = [
        Ratio(
            f"training step with CEM, {name}",
            ratio(name, "without"),
            "the same step without CEM",
            1.03 if name in _WITHIN_TARGET else None,
            detail=f"{1e3 * timings[name].median:.1f} ms against {1e3 * base:.1f} ms, {rounds} rounds",
        )
        for name in _FORMS
    ]
    return rows, base


def feature_pass(rounds: int, images: ImageSet, config: TrainConfig = CONFIG) -> Ratio:
    """The pass that collects the features for a refresh, over the steps of the epoch that it serves."""
    chosen = build_defenses(config, images.num_classes)
    model = build_model(config, images, chosen)
    trainer = Trainer(model, chosen, images, None, config)
    steps = len(images) // config.batch_size
    variants = {
        "pass": lambda: collect_features(trainer.model, images.images, bf16=trainer.bf16),
        "step": stepper(config, images),
    }
    timings, ratio = take_turns(variants, rounds=rounds)
    return Ratio(
        "one pass for the features of a refresh",
        ratio("pass", "step") / steps,
        "the epoch's training steps",
        detail=f"{timings['pass'].median:.2f} s for {len(images):,} images against {steps} steps of "
        f"{1e3 * timings['step'].median:.0f} ms",
    )


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
        f"{config.batch_size / timings['ours'].median:.0f} against "
        f"{config.batch_size / timings['plain'].median:.0f} images/s, "
        f"CPU {'with' if bf16 else 'without'} bf16",
    )


def stepper(
    config: TrainConfig, images: ImageSet, features: Tensor | None = None, labels: Tensor | None = None
) -> Callable[[], object]:
    """A real trainer, begun, whose steps are called one by one; CEM's mixture may be that of other features."""
    chosen = build_defenses(config, images.num_classes)
    trainer = Trainer(build_model(config, images, chosen), chosen, images, None, config)
    trainer.begin_epoch(0)
    for one in chosen:
        if features is not None and isinstance(one, CEMDefense):
            one.cem.refresh(features, labels)
    batches = torch.arange(len(images)).split(config.batch_size)
    state = {"step": 0}

    def step() -> None:
        number = state["step"] % (len(images) // config.batch_size)
        trainer.step(0, number, batches[number])
        state["step"] += 1

    return step


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
