"""What a defence may do: transform the feature, add a penalty, act between steps and epochs. Nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["Batch", "Defense", "Epoch"]


@dataclass(frozen=True)
class Batch:
    """One training batch as the defences see it.

    Attributes:
        images: (n, C, H, W) in [0, 1], after augmentation.
        labels: (n,).
        features: z_hat (n, ...), with its graph.
        released: z (n, ...), what leaves the device, with its graph.
        logits: (n, classes).
        progress: in [0, 1) through the whole training.
        lr: learning rate of this step.
    """

    images: Tensor
    labels: Tensor
    features: Tensor
    released: Tensor
    logits: Tensor
    progress: float
    lr: float


@dataclass(frozen=True)
class Epoch:
    """The start of an epoch as the defences see it.

    Attributes:
        index: from 0.
        collect: one pass over the training set without gradients: () -> (z_hat of all samples, labels).
    """

    index: int
    collect: Callable[[], tuple[Tensor, Tensor]]


class Defense(nn.Module):
    """Base of every defence; a leaf overrides what it needs.

    Attributes:
        name: short name, as the command line and tables show it.
        changes_released_features: whether `transform` returns a module (a test verifies it).
        trains_adversary: whether `on_step` trains a network of its own.
    """

    name: ClassVar[str]
    changes_released_features: ClassVar[bool] = False
    trains_adversary: ClassVar[bool] = False

    def transform(self) -> nn.Module | None:
        """A module that the channel applies to the feature before clipping, in training and inference alike."""
        return None

    def penalty(self, batch: Batch) -> Tensor | None:
        """What to add to the task loss, already weighed; None adds nothing."""
        return None

    def on_step(self, batch: Batch) -> None:
        """After the optimizer's step (inner adversaries)."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Before the first batch of an epoch (refreshing the mixture, pruning)."""

    def report(self) -> dict[str, Any]:
        """Plain values for the epoch's line in `metrics.jsonl`."""
        return {}
