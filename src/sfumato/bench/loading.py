"""Getting batches: ours against what a loader with per-image transforms gives."""

import itertools

import torch
from torch.utils.data import DataLoader

from sfumato.bench.rows import Row
from sfumato.bench.step import PerImage
from sfumato.bench.timing import take_turns
from sfumato.compute import memory_format
from sfumato.data import Augmentation, ImageSet

__all__ = ["batches"]


def batches(rounds: int, images: ImageSet, batch: int = 128) -> Row:
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
    timings, ratio = take_turns(variants, rounds=rounds)
    return Row(
        f"a batch of {batch} augmented images",
        ratio("theirs", "ours"),
        "DataLoader with per-image transforms, without worker processes",
        None,
        "at least",
        f"{1e3 * timings['theirs'].median:.1f} ms against {1e3 * timings['ours'].median:.2f} ms",
    )
