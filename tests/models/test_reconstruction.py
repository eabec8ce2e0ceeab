import pytest
import torch
from torch import nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.models import ReconstructionNet, ResBlock, count_macs, count_parameters


def test_it_is_the_published_network():
    net = ReconstructionNet((8, 8, 8), (3, 32, 32))
    assert count_parameters(net) == 711_539
    assert count_macs(net, (8, 8, 8)) == 54_281_216
    assert sum(isinstance(m, ResBlock) for m in net.modules()) == 10
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in net.modules()) == 2


def test_the_proxy_adversary_has_four_blocks_fewer():
    net = ReconstructionNet((8, 8, 8), (3, 32, 32), blocks=4)
    assert 711_539 - count_parameters(net) == 4 * (2 * 64 * 64 * 9 + 2 * 64 + 4 * 64)


@pytest.mark.parametrize(
    ("feature", "image", "doublings", "resized"),
    [
        ((8, 8, 8), (3, 32, 32), 2, False),
        ((8, 16, 16), (3, 32, 32), 1, False),
        ((8, 12, 12), (3, 48, 48), 2, False),
        ((8, 4, 4), (1, 8, 8), 1, False),
        ((2, 8, 8), (1, 8, 8), 0, False),
        ((64, 1, 1), (3, 32, 32), 5, False),
        ((8, 9, 12), (3, 37, 50), 2, True),
        ((8, 7, 7), (1, 28, 21), 2, True),
        ((8, 5, 5), (3, 15, 15), 2, True),
        ((8, 8, 8), (3, 5, 7), 0, True),
        ((512,), (3, 32, 32), 2, False),
        ((10,), (1, 8, 8), 0, False),
        ((30,), (1, 33, 17), 3, True),
        ((17, 12), (3, 32, 32), 2, False),
    ],
)
def test_every_feature_becomes_an_image(feature, image, doublings, resized):
    torch.manual_seed(0)  # a large value is 1 in float32
    net = ReconstructionNet(feature, image, width=4, blocks=1)
    x_hat = net(torch.randn(3, *feature))
    assert x_hat.shape == (3, *image)
    assert float(x_hat.detach().min()) > 0
    assert float(x_hat.detach().max()) < 1
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in net.modules()) == doublings
    assert net.resize is resized
    x_hat.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_pre_activation_block_by_hand():
    block = ResBlock(3, 3).eval()
    for conv in (block.conv1, block.conv2):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(block(x), 2 * x, atol=1e-4)
    assert torch.equal(block(-x), -x)  # nothing behind the sum cuts the negative values off
    block.conv1.weight.data.neg_()
    assert torch.equal(block(-x), -x)  # the first activation does
    assert torch.equal(block(x), x)  # and so does the second


def test_resizing_keeps_things_in_their_place():
    net = ReconstructionNet((1, 4, 4), (1, 13, 11))
    net.body, net.last = nn.Upsample(scale_factor=4), nn.Identity()
    z = torch.tensor([0.0, 1.0, 1.0, 0.0]) * torch.tensor([[1.0], [3.0], [3.0], [1.0]])
    x_hat = net(z[None, None])
    assert torch.allclose(x_hat, x_hat.flip(2), atol=1e-6)
    assert torch.allclose(x_hat, x_hat.flip(3), atol=1e-6)
    assert x_hat[0, 0, 6, 5] > x_hat[0, 0, 0, 5] > x_hat[0, 0, 0, 0]


def test_state_dict_round_trip_and_channels_last():
    first, second = (ReconstructionNet((8, 4, 4), (3, 16, 16), width=8, blocks=1).eval() for _ in range(2))
    z = torch.rand(2, 8, 4, 4)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(z), second(z))
    other = second.to(memory_format=torch.channels_last)(z.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(first(z), other, atol=1e-5)


def test_autocast():
    net = ReconstructionNet((8, 4, 4), (3, 15, 15), width=8, blocks=1)
    with torch.autocast("cpu", torch.bfloat16):
        x_hat = net(torch.rand(4, 8, 4, 4))
    x_hat.float().sum().backward()
    assert x_hat.shape == (4, 3, 15, 15)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ((8, 0, 8), (3, 32, 32)),
            r"feature_shape is \(8, 0, 8\); give \(channels, height, width\) or \(dimension,\)",
        ),
        (((), (3, 32, 32)), "feature_shape is"),
        (((8, 8, 8), (32, 32)), "image_shape is"),
    ],
)
def test_meaningless_shapes_are_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        ReconstructionNet(*arguments)


def test_meaningless_sizes_are_refused():
    with pytest.raises(ConfigError, match="width is 0 and blocks is 8"):
        ReconstructionNet((8, 8, 8), (3, 32, 32), width=0)


def test_another_feature_is_refused():
    net = ReconstructionNet((8, 8, 8), (3, 32, 32), width=4, blocks=0)
    with pytest.raises(FeatureError, match=r"built for features \(8, 8, 8\), got \(8, 16, 16\)"):
        net(torch.zeros(1, 8, 16, 16))
