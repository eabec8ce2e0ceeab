"""More training steps: 300 clusters, every defence, and getting a batch of images."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from plain import PerImage
from sfumato import defenses
from sfumato.bench.timing import Ratio, take_turns
from sfumato.bench.training import CONFIG, clustered, random_images, stepper
from sfumato.compute import memory_format
from sfumato.data import Augmentation, ImageSet
from sfumato.training import TrainConfig

__all__ = ["batches", "defense_steps", "many_clusters"]


def many_clusters(rounds: int, count: int, samples: int, config: TrainConfig = CONFIG) -> Ratio:
    """The step with 300 clusters, as for CIFAR-100: CEM over without. The mixture is of `samples` made-up features."""
    images = random_images(count, classes=100)
    features, labels = clustered(samples, 512, classes=100)
    variants = {
        "without": stepper(config, images),
        "with": stepper(replace(config, cem=True), images, features, labels),
    }
    seconds, ratio = take_turns(variants, rounds=rounds)
    return Ratio(
        "training step with CEM, full, 300 clusters",
        ratio("with", "without"),
        "the same step without CEM",
        1.05,
        detail=f"{1e3 * seconds['with']:.1f} ms against {1e3 * seconds['without']:.1f} ms, mixture of "
        f"{samples:,} features",
    )


def defense_steps(rounds: int, images: ImageSet, config: TrainConfig = CONFIG) -> list[Ratio]:
    """The step with each defence, with and without CEM, over the step without any."""
    variants: dict[str, Callable[[], object]] = {"none": stepper(config, images)}
    for name in defenses.names():
        for cem in (False, True):
            variants[name + (" and CEM" if cem else "")] = stepper(replace(config, defense=name, cem=cem), images)
    seconds, ratio = take_turns(variants, rounds=rounds)
    base = seconds["none"]
    return [
        Ratio(
            f"training step with {name}",
            ratio(name, "none"),
            "the same step without a defence",
            detail=f"{1e3 * seconds[name]:.1f} ms against {1e3 * base:.1f} ms",
        )
        for name in variants
        if name != "none"
    ]


def batches(rounds: int, images: ImageSet, batch: int = 128) -> Ratio:
    """A batch of augmented images: the loader's time over ours."""
    augmentation = Augmentation(pad=4, flip=True)
    steps = itertools.count()

    def ours() -> None:
        generator = torch.Generator().manual_seed(next(steps))
        indices = torch.randint(0, len(images), (batch,), generator=generator)
        augmentation(
            images.images[indices], generator, memory_format=memory_format(images.images.device, images.image_shape)
        )

    loader = DataLoader(PerImage(images), batch_size=batch, shuffle=True, drop_last=True)
    endless = (one for _ in itertools.count() for one in loader)
    variants = {"ours": ours, "theirs": lambda: next(endless)}
    seconds, ratio = take_turns(variants, rounds=rounds)
    return Ratio(
        f"a batch of {batch} augmented images",
        ratio("theirs", "ours"),
        "DataLoader with per-image transforms, without worker processes",
        None,
        "at least",
        f"{1e3 * seconds['theirs']:.1f} ms against {1e3 * seconds['ours']:.2f} ms",
    )
