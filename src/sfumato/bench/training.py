"""The training step with and without CEM, the refresh of its mixture, and the pass that collects the features."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.bench.timing import Ratio, take_turns
from sfumato.cem import CEM
from sfumato.data import ImageSet
from sfumato.defenses import CEMDefense
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model
from sfumato.training.evaluate import collect_features

__all__ = [
    "CONFIG",
    "QUICK",
    "cem_step",
    "clustered",
    "feature_pass",
    "random_images",
    "refresh",
    "stepper",
]

_CLASSES, _PER_CLASS = 10, 3
CONFIG = TrainConfig(data="cifar10", data_dir=".", model="vgg11", noise_std=0.025, hold_out=0.0)
QUICK = replace(CONFIG, model="vgg5", batch_size=8)
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
    base = timings["without"]
    rows = [
        Ratio(
            f"training step with CEM, {name}",
            ratio(name, "without"),
            "the same step without CEM",
            1.03 if name in _WITHIN_TARGET else None,
            detail=f"{1e3 * timings[name]:.1f} ms against {1e3 * base:.1f} ms, {rounds} rounds",
        )
        for name in _FORMS
    ]
    return rows, base


def feature_pass(rounds: int, images: ImageSet, config: TrainConfig = CONFIG) -> Ratio:
    """The pass that collects the features for a refresh, over the steps of the epoch that it serves."""
    chosen = build_defenses(config, images.num_classes)
    trainer = Trainer(build_model(config, images, chosen), chosen, images, None, config)
    steps = len(images) // config.batch_size
    collect = partial(collect_features, trainer.model, images.images, bf16=trainer.bf16)
    timings, ratio = take_turns({"pass": collect, "step": stepper(config, images)}, rounds=rounds)
    ms = 1e3 * timings["step"]
    detail = f"{timings['pass']:.2f} s for {len(images):,} images against {steps} steps of {ms:.0f} ms"
    over = "the epoch's training steps"
    return Ratio("one pass for the features of a refresh", ratio("pass", "step") / steps, over, detail=detail)


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


def clustered(count: int, dim: int, seed: int = 0, classes: int = _CLASSES) -> tuple[Tensor, Tensor]:
    """Features in [0, 1] around three centres per class with correlated spread, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    component = torch.randint(0, classes * _PER_CLASS, (count,), generator=generator)
    centres = 0.3 + 0.4 * torch.rand(classes * _PER_CLASS, dim, generator=generator)
    mix = torch.randn(32, dim, generator=generator) * 0.02
    features = torch.randn(count, 32, generator=generator) @ mix
    features += torch.randn(count, dim, generator=generator).mul_(0.05)
    features += centres[component]
    return features, component // _PER_CLASS


def refresh(rounds: int, step_seconds: float, count: int = 50_000, dim: int = 512) -> Ratio:
    """A warm refresh from given features over the time of the epoch that it serves."""
    features, labels = clustered(count, dim)
    cem = CEM(num_classes=_CLASSES, clusters_per_class=_PER_CLASS, noise_std=0.025)
    cem.refresh(features, labels)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        cem.refresh(features, labels)
        seconds.append(time.perf_counter() - began)
    epoch = step_seconds * count / 128
    taken = statistics.median(seconds)
    return Ratio(
        f"warm refresh, {count:,} x {dim}, class-conditional, full",
        taken / epoch,
        "an epoch of training steps",
        0.02,
        detail=f"{taken:.2f} s against {epoch:.0f} s (steps x {count / 128:.0f})",
    )
