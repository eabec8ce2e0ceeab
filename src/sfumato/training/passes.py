"""The training images on the device, as the steps see them, passes over them, and what a step minimises."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sfumato.compute import autocast, memory_format
from sfumato.data import Augmentation, ImageSet
from sfumato.defenses import Batch, Defense
from sfumato.distributed import Part, Ranks
from sfumato.seeds import derive_seed, generator
from sfumato.split import SplitModel
from sfumato.torch_utils import ENOUGH_FOR_STATISTICS, as_in_training, exact_batch_norm, has_batch_norm
from sfumato.training.config import TrainConfig

__all__ = ["Objective", "Passes"]

_SHARE_FOR_STATISTICS = 8  # of a large set, an eighth makes the statistics of batch norm exact: 4 % of an epoch


class Passes:
    """Training images and labels on a device, and what a model makes of them under the conditions of the steps.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    def __init__(
        self, model: SplitModel, train: ImageSet, config: TrainConfig, device: torch.device, ranks: Ranks, bf16: bool
    ) -> None:
        self.model, self.config, self.device, self.ranks, self.bf16 = model, config, device, ranks, bf16
        self.pixels = train.images.to(device)
        self.labels = train.labels.to(device)
        self._augmentation = _augmentation(config)
        self._format = memory_format(device, train.image_shape)

    def augmented(self, indices: Tensor, random: torch.Generator) -> Tensor:
        """The images at `indices`, in [0, 1], as a step sees them."""
        return self._augmentation(self.pixels[indices], random, memory_format=self._format)

    def collect(self, epoch: int) -> tuple[Tensor, Tensor]:
        """z_hat of all training images as the steps of this epoch compute it, and labels; of each rank its shard.

        Augmented, in the same batches and with the statistics of the batch: a mixture of other features, such as those
        of evaluation mode, would not be that of the features which the penalty pulls at.
        """
        where: list[Tensor] = []
        rows: list[Tensor] = []
        with as_in_training(self.model):
            for indices, x, part in self.batches("refresh", epoch):
                with part.working(), autocast(self.device, self.bf16):
                    rows.append(self.model.features(x).flatten(1).float()[: None if part.counted else 0])
                where.append(indices[: len(rows[-1])])
        found, order = self.ranks.gather(torch.cat(rows)), self.ranks.gather(torch.cat(where))
        features = torch.empty_like(found)
        features[order] = found
        own = self.ranks.shard(len(features))
        return features[own], self.labels[own]

    def make_statistics_exact(self, epoch: int, random: torch.Generator) -> None:
        """Batch-norm statistics for the weights of now (those of the steps lag behind), before anybody measures."""
        if not has_batch_norm(self.model):
            return
        size = self.config.micro_batch or self.config.batch_size
        most = max(ENOUGH_FOR_STATISTICS, len(self.labels) // _SHARE_FOR_STATISTICS)
        most = max(1, most // size) * size  # whole batches: a rest of one image has no variance
        with exact_batch_norm(self.model):
            for _, x, part in self.batches("statistics", epoch, most):
                with part.working(), autocast(self.device, self.bf16):
                    self.model.outputs(x, random)

    def batches(self, name: str, epoch: int, most: int | None = None) -> Iterator[tuple[Tensor, Tensor, Part]]:
        """Training images as the steps see them, in another order: indices and images of this rank's parts."""
        random = torch.Generator(self.device)
        order = torch.randperm(len(self.labels), generator=generator(self.config.seed, name, epoch))[:most]
        for number, batch in enumerate(order.to(self.device).split(self.config.micro_batch or self.config.batch_size)):
            part = self.ranks.split(len(batch))
            indices = batch[part.rows]
            random.manual_seed(derive_seed(self.config.seed, name, epoch, number, *part.stream))
            yield indices, self.augmented(indices, random), part


class Objective(nn.Module):
    """What a step minimises, with all that its gradient reaches."""

    def __init__(self, model: SplitModel, defenses: nn.ModuleList, device: torch.device, bf16: bool) -> None:
        super().__init__()
        self.model, self.defenses, self.bf16 = model, defenses, bf16
        # A defence may leave parameters out, and where none is left out DistributedDataParallel complains of having
        # looked for them; so there is always one.
        self.unused = nn.Parameter(torch.zeros((), device=device))

    def forward(self, x: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Batch]:
        with autocast(x.device, self.bf16):
            features, released, logits = self.model.outputs(x, random)
        loss = task = cross_entropy(logits.float(), labels)
        batch = Batch(x, labels, features, released, logits)
        for defense in self.defenses:
            if (penalty := cast(Defense, defense).penalty(batch)) is not None:
                loss = loss + penalty
        return loss, task, batch


def _augmentation(config: TrainConfig) -> Augmentation:
    if not config.augment:
        return Augmentation(pad=0, flip=False)
    if config.data in ("digits", "mnist"):
        return Augmentation(pad=1, flip=False, rotation=config.rotation)  # a mirrored digit is another sign
    pad = 0 if config.data == "fashion-mnist" else 4  # its clothes lie centred and fill the image
    return Augmentation(pad=pad, flip=True, rotation=config.rotation)
