"""Getting batches: ours against what a loader with per-image transforms gives."""

import torch
from torch.utils.data import DataLoader

from sfumato.bench.rows import Row
from sfumato.bench.step import PerImage
from sfumato.bench.timing import take_turns
from sfumato.data import Augmentation, ImageSet

__all__ = ["batches"]


def batches(rounds: int, images: ImageSet, batch: int = 128) -> Row:
    """A batch of augmented images: the loader's time over ours."""
    augmentation = Augmentation(pad=4, flip=True)
    state = {"batches": iter(()), "step": 0}

    def ours() -> None:
        generator = torch.Generator().manual_seed(state["step"])  # type: ignore[arg-type]
        indices = torch.randint(0, len(images), (batch,), generator=generator)
        augmentation(images.images[indices], generator, memory_format=torch.channels_last)
        state["step"] += 1  # type: ignore[operator]

    def theirs() -> None:
        try:
            next(state["batches"])  # type: ignore[arg-type]
        except StopIteration:
            loader = DataLoader(PerImage(images), batch_size=batch, shuffle=True, drop_last=True)
            state["batches"] = iter(loader)
            next(state["batches"])  # type: ignore[arg-type]

    timings, ratio = take_turns({"ours": ours, "theirs": theirs}, rounds=rounds)
    return Row(
        f"a batch of {batch} augmented images",
        ratio("theirs", "ours"),
        "DataLoader with per-image transforms, without worker processes",
        None,
        "at least",
        f"{1e3 * timings['theirs'].median:.1f} ms against {1e3 * timings['ours'].median:.2f} ms",
    )
