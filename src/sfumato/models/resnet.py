"""ResNet-20 for 64x64 images, cut behind its first convolution or behind one of its residual blocks."""

from collections.abc import Iterator, Sequence
from typing import Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.models.layers import Shared, check_image_shape, halves

_FIRST = 16  # channels of the first convolution
_WIDTHS = (32, 64, 128)  # channels of each stage
_BLOCKS = 3  # per stage

RESNET20_CUTS = (
    "conv1",
    *(f"stage{stage}.block{block}" for stage in (1, 2, 3) for block in (1, 2, 3) if (stage, block) != (3, 3)),
)
"""Where the network can be cut, from the image on; behind the last block only a linear layer would be left."""


class BasicBlock(nn.Module):
    """`relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`, 3x3 convolutions without bias.

    The shortcut has no parameters: it takes every `stride`-th row and column and fills the channels that are missing
    with zeros (option A of K. He et al., "Deep residual learning for image recognition", 2016).

    Args:
        inputs: channels of x.
        outputs: channels of the result, at least `inputs`.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.missing:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.missing))
        out: Tensor = self.relu2(inner + shortcut)
        return out


def resnet20(
    *,
    cut: str = "stage2.block1",
    num_classes: int = 200,
    image_shape: Sequence[int] = (3, 64, 64),
    **shared: Unpack[Shared],
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of the paper's ResNet-20 for TinyImageNet.

    Conv5x5(3->16), BatchNorm, ReLU; three stages of three basic blocks with 32, 64 and 128 channels, the first of each
    with stride 2; global average pool; Linear 128-classes. At the cut the encoder gets Conv3x3(C->8) and a sigmoid, the
    decoder begins with Conv3x3(8->C); these two have a bias, the other convolutions have none. For 3x64x64 images:

        cut              feature    encoder parameters    multiply-adds, share of the whole
        conv1            8x64x64           2,392                 9.6 M      6 %
        stage1.block1    8x32x32          17,496                21.4 M     13 %
        stage1.block2    8x32x32          36,056                40.3 M     24 %
        stage1.block3    8x32x32          54,616                59.2 M     36 %
        stage2.block1    8x16x16         112,472                72.2 M     44 %
        stage2.block2    8x16x16         186,456                91.0 M     56 %
        stage2.block3    8x16x16         260,440               109.9 M     67 %
        stage3.block1    8x8x8           486,744               123.5 M     76 %
        stage3.block2    8x8x8           782,168               142.3 M     88 %

    The paper's text says "the first four convolutional layers" and about 10 % of the work, but its attack network only
    fits a feature of 8x16x16. The first cut that gives one is `stage2.block1`, as in the authors' code, and therefore
    the default here; numbers from another cut have to name it.

    Args:
        cut: the encoder ends behind this part, one of `RESNET20_CUTS`.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 8x8.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.
    """
    shape = check_image_shape(image_shape)
    parts = list(_parts(shape[0], shared.get("stem")))  # all weights before those of the bottleneck, see `build`
    front, back = halves(
        "resnet20", parts, cut=cut, cuts=RESNET20_CUTS, num_classes=num_classes, image_shape=shape, least=8, **shared
    )
    back["pool"] = nn.AdaptiveAvgPool2d(1)
    back["flatten"] = nn.Flatten()
    back["head"] = nn.Linear(_WIDTHS[-1], num_classes)
    return nn.Sequential(front), nn.Sequential(back)


def _parts(channels: int, stem: int | None) -> Iterator[tuple[str, dict[str, nn.Module], int]]:
    if stem is not None:
        yield "stem", {"stem": _convolution(channels, stem, 3)}, stem
        channels = stem
    yield "conv1", {"conv1": _convolution(channels, _FIRST, 5)}, _FIRST
    channels = _FIRST
    for stage, width in enumerate(_WIDTHS, 1):
        for block in range(1, _BLOCKS + 1):
            module = BasicBlock(channels, width, stride=2 if block == 1 else 1)
            # A point in a module's name would be taken for the way to a submodule.
            yield f"stage{stage}.block{block}", {f"stage{stage}_block{block}": module}, width
            channels = width


def _convolution(inputs: int, outputs: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
