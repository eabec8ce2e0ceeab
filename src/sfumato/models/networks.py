"""The networks that are cut in two, by name: VGG11, VGG5, one for tiny images, and ResNet-20."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import ConfigError
from sfumato.models.layers import Dropout, Halves, Shared, check_image_shape, halves, plain_parts

_PLAN = (
    *((64, True), (128, True), (256, False), (256, True)),
    *((512, False), (512, True), (512, False), (512, False)),
)  # four halvings before the last pool
_CUTS = (1, 2, 3)
_POOLED_TWICE = 20  # from this side on vgg5 pools behind its second convolution


def vgg11(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (3, 32, 32),
    **shared: Unpack[Shared],
) -> Halves:
    """Encoder and decoder of the paper's VGG11 (supplement, Table 9).

    Encoder at the second convolution: Conv3x3(3->64), BatchNorm, ReLU, MaxPool2, Conv3x3(64->128), BatchNorm, ReLU,
    MaxPool2, then the bottleneck Conv3x3(128->8) and a sigmoid. Decoder: Conv3x3(8->128), the six remaining
    convolutions with their pools, then Dropout, Linear 512-512, ReLU, Dropout, Linear 512-512, ReLU, Linear
    512-classes. Every convolution has a bias. For 3x32x32 images:

        cut    feature    encoder parameters
         1     8x16x16          6,536
         2     8x8x8           85,256
         3     8x8x8          390,152

    The paper's cut is the second; the whole network then has 9,774,994 parameters.

    The last pool takes the maximum over whatever map is left, 2x2 for 32x32 images (as published), 3x3 for 48x48 and
    4x4 for 64x64, so the head is the same for every image size.

    Args:
        cut: the encoder ends behind this convolution, 1 to 3, and behind the pool that follows the first two.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 16x16.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.
    """
    shape = check_image_shape(image_shape)

    def tail() -> dict[str, nn.Module]:
        hidden = [part for _ in range(2) for part in (Dropout(0.5), nn.Linear(512, 512), nn.ReLU(inplace=True))]
        head = nn.Sequential(*hidden, nn.Linear(512, num_classes))
        return {"pool8": nn.MaxPool2d((shape[1] // 16, shape[2] // 16)), "flatten": nn.Flatten(), "head": head}

    return halves(
        "vgg11", plain_parts(_PLAN, shape[0], shared.get("stem")), tail, cut=cut, cuts=_CUTS, num_classes=num_classes,
        image_shape=shape, least=16, instead="use 'vgg5' instead", **shared,
    )  # fmt: skip


def vgg5(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (1, 28, 28),
    **shared: Unpack[Shared],
) -> Halves:
    """Encoder and decoder of a network of four convolutions and one linear layer, for images such as Fashion-MNIST's.

    Conv3x3(1->32), MaxPool2, Conv3x3(32->32), MaxPool2, Conv3x3(32->64), MaxPool2, Conv3x3(64->64), Linear; each
    convolution is followed by BatchNorm and ReLU, the bottleneck is built as in `vgg11`. Images with a side below 20
    are not pooled behind the second convolution, so that 14x14 and 28x28 images have the same feature at cuts 2 and 3:

        cut    feature of 14x14    of 28x28           of 32x32           encoder parameters, one channel
         1     8x7x7 = 392         8x14x14 = 1,568    8x16x16 = 2,048     2,696
         2     8x7x7 = 392         8x7x7   =   392    8x8x8   =   512    12,008
         3     8x3x3 =  72         8x3x3   =    72    8x4x4   =   128    32,936

    Args:
        cut: the encoder ends behind this convolution, 1 to 3, and behind a pool that follows it.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 8x8.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.

    >>> import torch
    >>> edge, cloud = vgg5(image_shape=(1, 14, 14))
    >>> tuple(edge(torch.zeros(1, 1, 14, 14)).shape)
    (1, 8, 7, 7)
    """
    shape = check_image_shape(image_shape)
    plan = ((32, True), (32, min(shape[1:]) >= _POOLED_TWICE), (64, True), (64, False))
    return halves(
        "vgg5", plain_parts(plan, shape[0], shared.get("stem")), _linear(plan, shape, num_classes), cut=cut, cuts=_CUTS,
        num_classes=num_classes, image_shape=shape, least=8, instead="use 'digits' instead", **shared,
    )  # fmt: skip


def digits(
    *,
    cut: int = 2,
    num_classes: int = 10,
    image_shape: Sequence[int] = (1, 8, 8),
    width: int = 16,
    **shared: Unpack[Shared],
) -> Halves:
    """Encoder and decoder of five convolutions and one linear layer for 8x8 digits: trains in seconds on a CPU.

    With w = `width`: Conv3x3(1->w), MaxPool2, three times Conv3x3(->2w), Conv3x3(2w->4w), MaxPool2, Linear; each
    convolution is followed by BatchNorm and ReLU. The bottleneck is built as in `vgg11`: for 8x8 images the feature is
    8x4x4.

    Args:
        cut: the encoder ends behind this convolution, 1 to 4; the feature has the same size in all.
        num_classes: outputs of the decoder.
        image_shape: (C, H, W), at least 4x4.
        width: channels of the first convolution.
        shared: `bottleneck`, `stem`, `squash`, `mean` and `std`, see `build`.

    Raises:
        ConfigError: an argument is out of its range.
    """
    shape = check_image_shape(image_shape)
    if width < 1:
        raise ConfigError(f"width is {width}; give at least 1")
    plan = ((width, True), (2 * width, False), (2 * width, False), (2 * width, False), (4 * width, True))
    return halves(
        "digits", plain_parts(plan, shape[0], shared.get("stem")), _linear(plan, shape, num_classes), cut=cut,
        cuts=(1, 2, 3, 4), num_classes=num_classes, image_shape=shape, least=4, **shared,
    )  # fmt: skip


def _linear(
    plan: Sequence[tuple[int, bool]], shape: tuple[int, int, int], num_classes: int
) -> Callable[[], dict[str, nn.Module]]:
    """One linear layer behind a plain network."""
    halvings = sum(pooled for _, pooled in plan)
    values = plan[-1][0] * (shape[1] >> halvings) * (shape[2] >> halvings)
    return lambda: {"flatten": nn.Flatten(), "head": nn.Linear(values, num_classes)}


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
) -> Halves:
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
    pooled: dict[str, nn.Module] = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return halves(
        "resnet20", parts, lambda: pooled | {"head": nn.Linear(_WIDTHS[-1], num_classes)}, cut=cut, cuts=RESNET20_CUTS,
        num_classes=num_classes, image_shape=shape, least=8, **shared,
    )  # fmt: skip


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


_BUILDERS: dict[str, Callable[..., Halves]] = {"digits": digits, "resnet20": resnet20, "vgg5": vgg5, "vgg11": vgg11}


def names() -> tuple[str, ...]:
    """The networks that `build` knows."""
    return tuple(sorted(_BUILDERS))


def default_cut(name: str) -> int | str:
    """Where a network is cut if nobody says otherwise: the paper's cut for `vgg11` (2) and `resnet20`.

    Raises:
        ConfigError: the network is unknown.
    """
    cut: int | str = inspect.signature(_builder(name)).parameters["cut"].default
    return cut


def build(name: str, *, cut: int | str, num_classes: int, image_shape: Sequence[int], **options: Any) -> Halves:
    """Encoder and decoder with fresh weights, drawn from torch's global generator: seed it for repeatable ones.

    Args:
        name: one of `names()`.
        cut: the encoder ends behind this convolution, counted from 1 (`digits`, `vgg5`, `vgg11`), or behind the part of
            this name (`resnet20`).
        num_classes: outputs of the decoder.
        image_shape: (C, H, W).
        options: `bottleneck` (8), the channels of the feature: the encoder then ends in Conv3x3(C -> b) and a sigmoid,
            which bounds the feature to (0, 1), and the decoder begins with Conv3x3(b -> C). None gives the raw ReLU
            feature: unbounded, so the channel needs a `clip_norm` for its noise to mean anything. `squash=False` leaves
            the sigmoid out; then it needs one, too. `stem`: channels of one more convolution with batch normalisation
            and ReLU in front (PATROL's 16), or None. `mean` (0.5) and `std` (0.25): subtracted from the images, which
            are in [0, 1], and dividing them; one number or one per channel. `width` (16): of `digits` alone.

    Raises:
        ConfigError: the network or an option is unknown, or an argument is out of its range.

    >>> import torch
    >>> edge, cloud = build("digits", cut=2, num_classes=10, image_shape=(1, 8, 8))
    >>> edge(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 8, 4, 4])
    """
    builder = _builder(name)
    own = set(inspect.signature(builder).parameters) - {"cut", "num_classes", "image_shape", "shared"}
    known = sorted(own | set(Shared.__annotations__))
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"network {name!r} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    return builder(cut=cut, num_classes=num_classes, image_shape=image_shape, **options)


def _builder(name: str) -> Callable[..., Halves]:
    if name not in _BUILDERS:
        raise ConfigError(f"unknown network {name!r}; known are {', '.join(names())}")
    return _BUILDERS[name]
