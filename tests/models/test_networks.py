import pytest
import torch
from torch import nn

from sfumato import models
from sfumato.errors import ConfigError
from sfumato.models import Normalize, build, count_macs, count_parameters, digits, vgg5, vgg11
from sfumato.split import Channel, SplitModel


def whole(name="vgg11", **options):
    settings = {"cut": 2, "num_classes": 10, "image_shape": (3, 32, 32), **options}
    edge, cloud = build(name, **settings)
    return SplitModel(edge, Channel(noise_std=0.025), cloud)


@pytest.mark.parametrize(
    ("cut", "feature", "on_edge", "in_cloud"),
    [
        (1, (8, 16, 16), 6_536, 9_759_178),
        (2, (8, 8, 8), 85_256, 9_689_738),
        (3, (8, 8, 8), 390_152, 9_403_402),
    ],
)
def test_vgg11_at_the_published_cuts(cut, feature, on_edge, in_cloud):
    model = whole(cut=cut)
    assert model.feature_shape((3, 32, 32)) == feature
    assert count_parameters(model.edge) == on_edge
    assert count_parameters(model.cloud) == in_cloud
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_vgg11_costs_what_was_published():
    model = whole()
    assert count_parameters(model) == 9_774_994
    assert count_macs(model.edge, (3, 32, 32)) == pytest.approx(21.23e6, rel=0.001)
    assert count_macs(model.cloud, (8, 8, 8)) == pytest.approx(133.24e6, rel=0.001)


def test_patrol_s_extra_layer_costs_what_was_published():
    assert count_parameters(vgg11(stem=16)[0]) == 93_224


def kinds(module):
    return " ".join(
        f"{type(m).__name__}{m.in_channels}-{m.out_channels}"
        if isinstance(m, nn.Conv2d)
        else f"{type(m).__name__}{m.out_features}"
        if isinstance(m, nn.Linear)
        else type(m).__name__
        for m in module.modules()
        if not list(m.children())
    )


def test_vgg11_layer_by_layer():
    edge, cloud = vgg11()
    assert kinds(edge) == (
        "Normalize Conv2d3-64 BatchNorm2d ReLU MaxPool2d Conv2d64-128 BatchNorm2d ReLU MaxPool2d Conv2d128-8 Sigmoid"
    )
    assert kinds(cloud) == (
        "Conv2d8-128 Conv2d128-256 BatchNorm2d ReLU Conv2d256-256 BatchNorm2d ReLU MaxPool2d "
        "Conv2d256-512 BatchNorm2d ReLU Conv2d512-512 BatchNorm2d ReLU MaxPool2d "
        "Conv2d512-512 BatchNorm2d ReLU Conv2d512-512 BatchNorm2d ReLU MaxPool2d Flatten "
        "Dropout Linear512 ReLU Dropout Linear512 ReLU Linear10"
    )
    assert all(m.bias is not None for m in cloud.modules() if isinstance(m, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize(
    ("image", "feature"),
    [
        ((3, 48, 48), (8, 12, 12)),
        ((3, 64, 64), (8, 16, 16)),
        ((1, 16, 16), (8, 4, 4)),
        ((3, 37, 50), (8, 9, 12)),
    ],
)
def test_vgg11_takes_other_image_sizes(image, feature):
    model = whole(image_shape=image)
    assert model.feature_shape(image) == feature
    assert model(torch.rand(2, *image)).shape == (2, 10)
    assert count_parameters(model.cloud) == 9_689_738


def test_vgg11_for_faces_trains_at_48x48():
    torch.manual_seed(0)
    model = whole(image_shape=(3, 48, 48), num_classes=2)
    y = torch.arange(4) % 2
    x = 0.5 * torch.rand(4, 3, 48, 48) + 0.5 * y.reshape(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model(x).shape == (4, 2)
    assert min(losses[-3:]) < 0.3 * losses[0]


def test_the_last_pool_sees_the_whole_map():
    """At 48x48 the last map is 3x3; a plain 2x2 pool would drop its last row and column."""
    cloud = whole(image_shape=(3, 48, 48)).cloud
    x = torch.zeros(1, 512, 3, 3)
    x[..., 2, 2] = 1.0
    assert float(cloud.pool8(x).max()) == 1.0


def test_the_feature_is_bounded_with_a_bottleneck_and_raw_without():
    x = torch.rand(4, 3, 32, 32)
    feature = vgg11()[0](1e3 * x)
    assert float(feature.detach().min()) >= 0.0
    assert float(feature.detach().max()) <= 1.0
    for cut, channels in ((1, 64), (2, 128), (3, 256)):
        edge, cloud = vgg11(cut=cut, bottleneck=None)
        raw = edge(x)
        assert raw.shape[1] == channels
        assert float(raw.detach().min()) == 0.0
        assert float(raw.detach().max()) > 1.0
        assert cloud(raw).shape == (4, 10)


def test_normalize_has_no_parameters_and_travels_in_the_state():
    layer = Normalize((0.1, 0.2), (0.5, 2.0), 2)
    assert list(layer.parameters()) == []
    x = torch.tensor([0.6, 1.2]).reshape(1, 2, 1, 1)
    assert layer(x).flatten().tolist() == pytest.approx([1.0, 0.5])
    edge = vgg11(mean=(0.1, 0.2, 0.3), std=0.5)[0]
    assert edge.state_dict()["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("side", "cut", "feature", "on_edge", "in_cloud"),
    [
        (14, 1, (8, 7, 7), 2_696, 73_098),
        (14, 2, (8, 7, 7), 12_008, 63_786),
        (14, 3, (8, 3, 3), 32_936, 47_498),
        (28, 1, (8, 14, 14), 2_696, 73_098),
        (28, 2, (8, 7, 7), 12_008, 63_786),
        (28, 3, (8, 3, 3), 32_936, 47_498),
        (32, 2, (8, 8, 8), 12_008, 68_266),
        (8, 2, (8, 4, 4), 12_008, 60_586),
    ],
)
def test_vgg5_releases_the_same_feature_of_14x14_and_28x28(side, cut, feature, on_edge, in_cloud):
    model = whole("vgg5", cut=cut, image_shape=(1, side, side))
    assert model.feature_shape((1, side, side)) == feature
    assert count_parameters(model.edge) == on_edge
    assert count_parameters(model.cloud) == in_cloud
    assert model(torch.rand(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("name", ["vgg5", "vgg11", "digits"])
def test_the_same_seed_builds_the_same_network(name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(whole(name, image_shape=(1, 16, 16)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_state_dict_round_trip():
    first, second = whole().eval(), whole().eval()
    x = torch.rand(2, 3, 32, 32)
    second.load_state_dict(first.state_dict())
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(first(x, seeds[0]), second(x, seeds[1]))


def test_channels_last_gives_the_same_answer():
    model, x = whole().eval(), torch.rand(2, 3, 32, 32)
    a = model(x, torch.Generator().manual_seed(0))
    model.to(memory_format=torch.channels_last)
    b = model(x.contiguous(memory_format=torch.channels_last), torch.Generator().manual_seed(0))
    assert torch.allclose(a, b, atol=1e-5)


def test_bf16_autocast_trains_and_keeps_the_noise_in_full_precision():
    model, x = whole(), torch.rand(8, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.outputs(x, torch.Generator().manual_seed(0))
        loss = nn.functional.cross_entropy(out.logits, torch.arange(8))
    loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert out.features.dtype == out.released.dtype == torch.float32
    # bfloat16 has 128 values from 0.5 to 1; a sum rounded to it could not take as many values as there are entries
    assert len(out.released.unique()) > 3500
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_small_network_learns_digits_in_seconds():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    learn, judge = order[:1437], order[1437:]
    model = whole("digits", image_shape=(1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for batch in learn[torch.randperm(len(learn))].split(64):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    correct = (model.eval()(x[judge]).argmax(1) == y[judge]).float().mean()
    assert float(correct) > 0.94


@pytest.mark.parametrize(("cut", "on_edge"), [(1, 1_352), (2, 7_208), (3, 16_520), (4, 25_832)])
def test_digits_is_small(cut, on_edge):
    model = whole("digits", image_shape=(1, 8, 8), cut=cut)
    assert model.feature_shape((1, 8, 8)) == (8, 4, 4)
    assert count_parameters(model.edge) == on_edge
    wide = whole("digits", image_shape=(3, 9, 11), width=4, bottleneck=2, num_classes=3)
    assert wide(torch.rand(2, 3, 9, 11)).shape == (2, 3)


def test_the_registry_names_what_it_knows():
    assert models.names() == ("digits", "resnet20", "vgg11", "vgg5")
    with pytest.raises(ConfigError, match="unknown network 'resnet'; known are digits, resnet20, vgg11, vgg5"):
        whole("resnet")
    with pytest.raises(ConfigError, match="'vgg11' has no option 'width'; it takes bottleneck, mean, squash"):
        whole(width=4)


@pytest.mark.parametrize(
    ("builder", "settings", "text"),
    [
        (vgg11, {"cut": 4}, "convolution 1, 2, 3, not 4"),
        (vgg11, {"cut": "2"}, "not '2'"),
        (vgg11, {"cut": "stage2.block1"}, "convolution 1, 2, 3, not 'stage2.block1'"),
        (digits, {"cut": 5}, "convolution 1, 2, 3, 4, not 5"),
        (vgg11, {"bottleneck": 0}, "bottleneck is 0; give at least 1 channel"),
        (vgg11, {"stem": 0}, "stem is 0"),
        (vgg11, {"image_shape": (1, 8, 8)}, "at least 16x16, got .* use 'vgg5'"),
        (vgg5, {"image_shape": (1, 7, 28)}, "at least 8x8, got .* use 'digits'"),
        (vgg5, {"cut": 4}, "convolution 1, 2, 3, not 4"),
        (vgg5, {"num_classes": 0}, "num_classes is 0"),
        (vgg11, {"image_shape": (32, 32)}, r"give \(channels, height, width\)"),
        (vgg11, {"num_classes": 0}, "num_classes is 0"),
        (vgg11, {"mean": (0.1, 0.2)}, "mean has 2 numbers for images of 3 channels"),
        (vgg11, {"std": 0.0}, "has to be above 0"),
        (digits, {"image_shape": (1, 3, 8)}, "at least 4x4"),
        (digits, {"width": 0}, "width is 0"),
    ],
)
def test_meaningless_settings_are_refused(builder, settings, text):
    with pytest.raises(ConfigError, match=text):
        builder(**settings)
