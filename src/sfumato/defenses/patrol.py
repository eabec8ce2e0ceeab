"""PATROL: one more layer on the device, trained against an adversary, then pruned back to the size of the others."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.defenses.base import Epoch, Site
from sfumato.defenses.registry import register
from sfumato.defenses.ressfl import ResSFL
from sfumato.errors import ConfigError
from sfumato.models import count_parameters
from sfumato.models.widths import Prunable, keep_channels, prunable

_GRID = 1000


@register
class Patrol(ResSFL):
    """ResSFL with one more convolution in front, whose cost structured pruning takes back.

    Source: Ding et al., PATROL, WACV 2024 (the paper's [7]). Training begins with an encoder that has one more layer of
    `stem` channels; after the share `prune_at` of the epochs (the authors' code prunes from epoch 180 of 240) the
    channels of all its inner layers are thinned out by one common factor until the encoder has at most as many
    parameters as it has without the extra layer, 85,256 for the paper's VGG11. The rest of the epochs heals the cut.
    Channels go by the size of what they pass on, `|gamma| |w_next|_1` with gamma of their batch normalisation and
    w_next the weights that read them.

    Deviation: the authors' code thins out in several rounds over ten epochs, ours once, and their criterion is not
    stated in the paper.

    Args:
        stem: channels of the extra layer.
        prune_at: share of the training after which the encoder is pruned, in (0, 1).
        budget: most parameters that the encoder may have afterwards; None: as many as without the extra layer.
        alpha: as for `ResSFL`.
        threshold: as for `ResSFL`.
        lr: as for `ResSFL`.
        width: as for `ResSFL`.
        blocks: as for `ResSFL`.

    Raises:
        ConfigError: a setting is out of its range, or the budget cannot be met.
    """

    name: ClassVar[str] = "patrol"
    changes_architecture: ClassVar[bool] = True

    def __init__(
        self,
        stem: int = 16,
        prune_at: float = 0.75,
        budget: int | None = None,
        alpha: float = 0.3,
        threshold: float = 0.5,
        lr: float = 1e-3,
        width: int = 64,
        blocks: int = 4,
    ) -> None:
        super().__init__(alpha, threshold, lr, width, blocks)
        if not 0 < prune_at < 1:
            raise ConfigError(f"prune_at is {prune_at}; give a share of the training between 0 and 1, such as 0.75")
        if stem < 1:
            raise ConfigError(f"stem is {stem}; the extra layer needs at least 1 channel")
        self.stem, self.prune_at, self.budget = stem, prune_at, budget
        self._image_channels = 3
        self.pruned: Tensor
        self.register_buffer("pruned", torch.zeros((), dtype=torch.int64))

    def model_options(self) -> dict[str, Any]:
        """One more convolution in front."""
        return {"stem": self.stem}

    def attach(self, site: Site) -> None:
        """Build the adversary."""
        super().attach(site)
        self._image_channels = site.image_shape[0]

    def on_epoch(self, epoch: Epoch) -> None:
        """Prune, once, when its time has come."""
        first = max(1, min(epoch.total - 1, round(self.prune_at * epoch.total)))
        if epoch.index >= first and not int(self.pruned):
            edge = epoch.model.edge
            budget = self.budget or size_without_stem(edge, self.stem, self._image_channels)
            prune_to(edge, budget)
            self.pruned.fill_(count_parameters(edge))
            epoch.parameters_replaced()

    def report(self) -> dict[str, float]:
        """The adversary's SSIM and the encoder's parameters after pruning (0 before)."""
        return {**super().report(), "pruned_parameters": int(self.pruned)}


def size_without_stem(edge: nn.Module, stem: int, image_channels: int) -> int:
    """Parameters of the encoder if its second convolution read the image instead of the extra layer's output."""
    first, second = [part for part in edge.modules() if isinstance(part, nn.Conv2d)][:2]
    norm = 2 * stem
    kernel = second.kernel_size[0] * second.kernel_size[1]
    return (
        count_parameters(edge)
        - count_parameters(first)
        - norm
        - (stem - image_channels) * kernel * (second.out_channels)
    )


def prune_to(edge: nn.Module, budget: int) -> None:
    """Keep the largest common share of the channels of every inner layer with which `edge` has at most `budget`
    parameters.
    """
    groups = prunable(edge)
    widths = [group.producer.out_channels for group in groups]
    low, high = 0, _GRID  # `low` is known to fit or is 0, `high` is known not to fit
    if _size(edge, groups, widths) <= budget:
        return
    while high - low > 1:
        middle = (low + high) // 2
        if _size(edge, groups, _shares(widths, middle)) <= budget:
            low = middle
        else:
            high = middle
    kept = _shares(widths, low)
    if _size(edge, groups, kept) > budget:
        raise ConfigError(f"the encoder cannot be pruned to {budget} parameters; raise the budget")
    for group, count in zip(groups, kept, strict=True):
        keep_channels(group, _strongest(group, count))


def _shares(widths: list[int], thousandths: int) -> list[int]:
    return [max(1, width * thousandths // _GRID) for width in widths]


def _size(edge: nn.Module, groups: list[Prunable], kept: list[int]) -> int:
    """Parameters that `edge` would have with so many channels in each group."""
    outputs = {group.producer: count for group, count in zip(groups, kept, strict=True)}
    inputs = {group.consumer: count for group, count in zip(groups, kept, strict=True)}
    norms = {group.norm: count for group, count in zip(groups, kept, strict=True)}
    total = 0
    for part in edge.modules():
        if isinstance(part, nn.Conv2d):
            out = outputs.get(part, part.out_channels)
            taken = inputs.get(part, part.in_channels)
            total += out * (taken // part.groups * part.kernel_size[0] * part.kernel_size[1] + (part.bias is not None))
        elif isinstance(part, nn.BatchNorm2d):
            total += 2 * norms.get(part, part.num_features) * part.affine
        else:
            total += sum(parameter.numel() for parameter in part.parameters(recurse=False))
    return total


def _strongest(group: Prunable, count: int) -> Tensor:
    passed_on = group.norm.weight.detach().abs() * group.consumer.weight.detach().abs().sum((0, 2, 3))
    return passed_on.argsort(descending=True, stable=True)[:count].sort().values
