"""Networks: the ones that are cut in two, and those that reconstruct images from features."""

from sfumato.models.count import count_macs, count_parameters
from sfumato.models.layers import Normalize
from sfumato.models.networks import (
    RESNET20_CUTS,
    BasicBlock,
    build,
    default_cut,
    digits,
    names,
    resnet20,
    vgg5,
    vgg11,
)
from sfumato.models.reconstruction import Critic, ReconstructionNet, ResBlock

__all__ = [
    "RESNET20_CUTS",
    "BasicBlock",
    "Critic",
    "Normalize",
    "ReconstructionNet",
    "ResBlock",
    "build",
    "count_macs",
    "count_parameters",
    "default_cut",
    "digits",
    "names",
    "resnet20",
    "vgg5",
    "vgg11",
]
