import pytest
import torch
from torch import nn

from sfumato.errors import ConfigError
from sfumato.models import RESNET20_CUTS, BasicBlock, build, count_macs, count_parameters, default_cut, resnet20
from sfumato.split import Channel, SplitModel


def whole(**options):
    edge, cloud = build(
        "resnet20", **{"cut": "stage2.block1", "num_classes": 200, "image_shape": (3, 64, 64), **options}
    )
    return SplitModel(edge, Channel(noise_std=0.025), cloud)


def test_the_default_cut_is_the_published_network():
    edge, cloud = resnet20()
    feature = edge(torch.rand(2, 3, 64, 64))
    assert feature.shape == (2, 8, 16, 16)
    assert cloud(feature).shape == (2, 200)
    assert count_parameters(edge) == 112_472
    assert count_macs(edge, (3, 64, 64)) == 72_155_136
    # 44 % of the work: by hand, a stage-2 block costs 18.87 M, stage 3 13.57 M in its first block.
    assert count_macs(cloud, (8, 16, 16)) == 90_858_496


# Parameters of the body by hand: the block a -> b has 9 a b + 9 b b weights and 4 b of its two BatchNorms; the
# bottleneck behind C channels 72 C + 8.
@pytest.mark.parametrize(
    ("cut", "feature", "on_edge"),
    [
        ("conv1", (8, 64, 64), 1_232 + 1_160),
        ("stage1.block1", (8, 32, 32), 1_232 + 13_952 + 2_312),
        ("stage1.block2", (8, 32, 32), 15_184 + 18_560 + 2_312),
        ("stage1.block3", (8, 32, 32), 33_744 + 18_560 + 2_312),
        ("stage2.block1", (8, 16, 16), 52_304 + 55_552 + 4_616),
        ("stage2.block2", (8, 16, 16), 107_856 + 73_984 + 4_616),
        ("stage2.block3", (8, 16, 16), 181_840 + 73_984 + 4_616),
        ("stage3.block1", (8, 8, 8), 255_824 + 221_696 + 9_224),
        ("stage3.block2", (8, 8, 8), 477_520 + 295_424 + 9_224),
    ],
)
def test_every_cut(cut, feature, on_edge):
    model = whole(cut=cut)
    assert model.feature_shape((3, 64, 64)) == feature
    assert count_parameters(model.edge) == on_edge
    # The body has 1,094,168 with its head; bottleneck and expansion come on top.
    channels = {"c": 16, "1": 32, "2": 64, "3": 128}[cut.removeprefix("stage")[0]]
    body = 1_232 + 51_072 + 203_520 + 812_544 + 128 * 200 + 200
    assert count_parameters(model) == body + 72 * channels + 8 + 73 * channels
    assert cut in RESNET20_CUTS
    assert len(RESNET20_CUTS) == 9


def test_a_block_by_hand():
    """With all weights zero only the shortcut is left: every second pixel, new channels zero, negative ones cut."""
    block = BasicBlock(2, 3, stride=2).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.arange(-20.0, 30.0).reshape(1, 2, 5, 5)
    y = block(x)
    assert y.shape == (1, 3, 3, 3)
    assert y[0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 2, 4]]
    assert y[0, 1].tolist() == [[5, 7, 9], [15, 17, 19], [25, 27, 29]]
    assert not y[0, 2].any()
    # An identity kernel in both convolutions (BatchNorm as initialised is the identity): relu(relu(x) + x).
    block = BasicBlock(1, 1).eval()
    for conv in (block.conv1, block.conv2):
        nn.init.dirac_(conv.weight)
    x = torch.tensor([-3.0, 2.0]).reshape(1, 1, 1, 2)
    assert block(x).flatten().tolist() == pytest.approx([0.0, 4.0], abs=1e-4)


def test_odd_sizes_other_channels_and_no_bottleneck():
    model = whole(image_shape=(1, 37, 50), num_classes=3, bottleneck=None, cut="stage1.block2")
    assert model.feature_shape((1, 37, 50)) == (32, 19, 25)
    assert model(torch.rand(2, 1, 37, 50)).shape == (2, 3)
    assert float(resnet20()[0](1e3 * torch.rand(2, 3, 64, 64)).detach().max()) <= 1.0


def test_one_more_layer_in_front():
    plain, more = resnet20()[0], resnet20(stem=16)[0]
    # 3 -> 16 channels, 3x3, with BatchNorm; the 5x5 convolution then reads 16 channels instead of 3.
    assert count_parameters(more) - count_parameters(plain) == 432 + 32 + 16 * 13 * 25
    assert more(torch.rand(1, 3, 64, 64)).shape == (1, 8, 16, 16)


def test_it_learns_and_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    model = whole(image_shape=(3, 16, 16), num_classes=2)
    y = torch.arange(16) % 2
    x = 0.5 * torch.rand(16, 3, 16, 16) + 0.5 * y.reshape(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert all(bool(p.grad.abs().sum() > 0) for p in model.parameters() if p.ndim > 1)
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_default_cuts():
    assert default_cut("vgg11") == 2
    assert default_cut("digits") == 2
    assert default_cut("resnet20") == "stage2.block1"
    with pytest.raises(ConfigError, match="unknown network 'vgg'; known are digits, resnet20, vgg11"):
        default_cut("vgg")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cut": 2}, "can be cut behind conv1, stage1.block1, .*, stage3.block2, not 2; set cut accordingly"),
        ({"cut": "stage3.block3"}, "not 'stage3.block3'"),
        ({"bottleneck": 0}, "bottleneck is 0; give at least 1 channel"),
        ({"stem": 0}, "stem is 0"),
        ({"image_shape": (3, 7, 64)}, "at least 8x8"),
        ({"image_shape": (64, 64)}, r"give \(channels, height, width\)"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_meaningless_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        whole(**settings)
