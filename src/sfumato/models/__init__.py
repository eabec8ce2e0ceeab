"""Networks: the ones that are cut in two, and those that reconstruct images from features."""

from sfumato.models.count import count_macs, count_parameters
from sfumato.models.critic import Critic
from sfumato.models.layers import Normalize
from sfumato.models.reconstruction import ReconstructionNet, ResBlock
from sfumato.models.registry import build, default_cut, names
from sfumato.models.resnet import RESNET20_CUTS, BasicBlock, resnet20
from sfumato.models.vgg import digits, vgg5, vgg11

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
