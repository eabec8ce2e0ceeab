"""Bundles to measure with: random weights, since speed does not depend on them."""

from pathlib import Path

from torch import nn

from sfumato import Channel, SplitModel, models
from sfumato.deploy.export import ExportConfig, export_bundle

__all__ = ["TINY", "WIDE", "tiny", "vgg11", "wide"]

TINY = 16  # values of the tiny decoder's feature
WIDE = 512  # of the wide decoder's

_CLASSES = [str(index) for index in range(10)]


def vgg11(folder: Path, bits: int | None = None) -> Path:
    """The paper's network for CIFAR-10, cut at the second convolution: a feature of 8x8x8 = 512 values."""
    edge, cloud = models.build("vgg11", num_classes=10, image_shape=(3, 32, 32), cut=2, bottleneck=8)
    return _export(folder, "vgg11", edge, cloud, (3, 32, 32), bits)


def wide(folder: Path, width: int = 4096) -> Path:
    """512 values, two hidden layers of `width`, 10 classes: 76 MB of weights, of which one row uses each only once."""
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDE), nn.Sigmoid())
    cloud = nn.Sequential(nn.Linear(WIDE, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return _export(folder, "wide", edge, cloud, (1, 8, 8))


def tiny(folder: Path) -> Path:
    """16 values, one linear layer: what is left to measure is the protocol."""
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, TINY), nn.Sigmoid())
    return _export(folder, "tiny", edge, nn.Linear(TINY, 10), (1, 8, 8))


def _export(
    folder: Path, name: str, edge: nn.Module, cloud: nn.Module, image: tuple[int, ...], bits: int | None = None
) -> Path:
    model = SplitModel(edge, Channel(noise_std=0.025), cloud).eval()
    config = ExportConfig(name, quantize_bits=bits)
    export_bundle(model, folder, config, classes=_CLASSES, image_shape=image)
    return folder
