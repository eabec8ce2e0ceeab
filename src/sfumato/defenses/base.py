"""What a defence may do: transform the feature, add a penalty, act between steps and epochs. Nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.split import SplitModel


@dataclass(frozen=True)
class Site:
    """Where a defence is put to work.

    Attributes:
        feature_shape: shape of one released feature, without the batch dimension.
        image_shape: (C, H, W).
        num_classes: number of classes.
    """

    feature_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    num_classes: int


@dataclass(frozen=True)
class Batch:
    """One training batch as the defences see it; in data-parallel training this rank's part of it.

    A penalty that is a mean over samples needs to know nothing about that. One that looks at the batch as a whole takes
    `sfumato.distributed.whole(batch.features)` in the place of `batch.features`.

    Attributes:
        images: (n, C, H, W) in [0, 1], after augmentation.
        labels: (n,).
        features: z_hat (n, ...), with its graph.
        released: z (n, ...), what leaves the device, with its graph.
        logits: (n, classes).
    """

    images: Tensor
    labels: Tensor
    features: Tensor
    released: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Epoch:
    """The start of an epoch as the defences see it.

    Attributes:
        index: from 0.
        total: number of epochs of the whole training.
        collect: one pass over the training set without gradients: () -> (z_hat of all samples, labels). In
            data-parallel training this rank's part of them; `sfumato.distributed.Ranks.current().gather` gives all.
        model: the split model, for defences that change its layers.
        parameters_replaced: to be called by a defence that put new parameters in the place of old ones; the trainer
            then builds its optimizer anew (its momentum starts from zero).
    """

    index: int
    total: int
    collect: Callable[[], tuple[Tensor, Tensor]]
    model: SplitModel
    parameters_replaced: Callable[[], None]


class Defense(nn.Module):
    """Base of every defence; a leaf overrides what it needs.

    Attributes:
        name: short name, as the command line and tables show it.
        changes_released_features: whether `transform` returns a module (a test verifies it).
        trains_adversary: whether `on_step` trains a network of its own (a test verifies it).
        changes_architecture: whether `model_options` asks for another network (a test verifies it).
        replayable: whether `penalty` and `on_step` may be captured and replayed by a GPU: they never wait for the
            device and keep what they read in place (a test verifies it for every registered defence).
    """

    name: ClassVar[str]
    changes_released_features: ClassVar[bool] = False
    trains_adversary: ClassVar[bool] = False
    changes_architecture: ClassVar[bool] = False
    replayable: bool = False

    @property
    def layout(self) -> int:
        """Counts up whenever a tensor that a step reads has moved; the step is then captured anew."""
        return 0

    def model_options(self) -> dict[str, Any]:
        """How the network has to be built: options of `sfumato.models.build`, such as an extra layer."""
        return {}

    def transform(self) -> nn.Module | None:
        """A module that the channel applies to the feature, in training and inference alike.

        A module that draws random numbers declares `stochastic = True` and takes a `generator`; it then acts on the
        bounded feature, just before the noise. Others act before the feature is bounded.
        """
        return None

    def attach(self, site: Site) -> None:
        """Before training, once the shapes are known (networks of the defence's own)."""

    def before_step(self, progress: float, lr: float) -> None:
        """Before every step: write what changes with the time into tensors that `penalty` reads.

        A GPU may replay `penalty` and `on_step` as they were captured once, Python numbers included. What depends on
        the place in the training is therefore set here, in buffers, in place.

        Args:
            progress: in [0, 1) through the whole training.
            lr: learning rate of the step.
        """

    def penalty(self, batch: Batch) -> Tensor | None:
        """What to add to the task loss, already weighed; None adds nothing."""
        return None

    def on_step(self, batch: Batch) -> None:
        """After the optimizer's step (inner adversaries)."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Before the first batch of an epoch (refreshing the mixture, pruning)."""

    def end_epoch(self) -> None:
        """After the last step of an epoch: raise a `FeatureError` where the defence did not act as it should have."""

    def optimizers(self) -> Sequence[Optimizer]:
        """The defence's own optimizers, so that their state is part of every checkpoint."""
        return ()

    def report(self) -> dict[str, Any]:
        """Plain values for the epoch's line in `metrics.jsonl`."""
        return {}
