import pytest
import torch
from torch import nn

from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel, SplitOutput


class Mask(nn.Module):
    """A random transform, as a dropout defence would contribute it."""

    stochastic = True

    def forward(self, x, generator=None):
        return x * (torch.rand(x.shape, generator=generator) < 0.8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**channel):
    torch.manual_seed(0)
    edge = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Sigmoid())
    cloud = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5))
    return SplitModel(edge, Channel(**channel), cloud)


FULL = {"noise_std": 0.3, "clip_norm": 2.0, "quantize_bits": 6, "transforms": [Mask()]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channel", [{}, {"noise_std": 0.1}, FULL], ids=["open", "noise", "full"])
def test_all_methods_agree_bitwise(channel, training):
    model, x = tiny(**channel).train(training), torch.rand(6, 3, 8, 8)
    out = model.outputs(x, seeded())
    assert isinstance(out, SplitOutput)
    assert torch.equal(model.features(x), out.features)
    assert torch.equal(model.encode(x, seeded()), out.released)
    assert torch.equal(model(x, seeded()), out.logits)
    assert torch.equal(model.cloud(out.released.clone()), out.logits)
    assert torch.equal(model.channel.release(model.features(x), seeded()), out.released)


def test_the_release_has_the_noise_and_the_feature_has_not():
    model, x = tiny(noise_std=0.5).eval(), torch.rand(200, 3, 8, 8)
    features, released, _ = model.outputs(x, seeded())
    assert torch.equal(features, model.edge(x))
    assert float((released - features).detach().std()) == pytest.approx(0.5, rel=0.03)
    assert not torch.equal(model.encode(x), model.encode(x))


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_an_in_place_cloud_does_not_change_what_is_reported_as_released(noise_std):
    model, x = tiny(noise_std=noise_std, low=-1.0).eval(), torch.rand(6, 3, 8, 8)
    model.edge[2] = nn.Identity()  # negative features, which the cloud's first layer sets to zero in place
    out = model.outputs(x, seeded())
    assert torch.equal(out.released, model.encode(x, seeded()))
    assert float(out.features.detach().min()) < 0
    assert float(out.released.detach().min()) < 0


def test_gradients_reach_the_encoder_through_the_whole_channel():
    model = tiny(**FULL)
    model(torch.rand(4, 3, 8, 8), seeded()).square().sum().backward()
    assert float(model.edge[0].weight.grad.abs().sum()) > 0


def test_feature_shape_leaves_modes_statistics_and_random_state_alone():
    model = tiny(noise_std=0.1, transforms=[Mask()])
    model.edge[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert model.feature_shape((3, 8, 8)) == (4, 4, 4)
    assert model.feature_shape((3, 9, 12)) == (4, 5, 6)
    assert model.training
    assert not model.edge[1].training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_dict_round_trip_with_a_transform_that_has_weights():
    first = tiny(transforms=[nn.Conv2d(4, 4, 1)]).eval()
    second = tiny(transforms=[nn.Conv2d(4, 4, 1)]).eval()
    with torch.no_grad():
        for value in first.parameters():
            value.add_(0.1)
    x = torch.rand(3, 3, 8, 8)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert "channel.transforms.0.weight" in first.state_dict()


def test_channels_last_input():
    model, x = tiny(noise_std=0.1).eval(), torch.rand(3, 3, 8, 8)
    other = model(x.contiguous(memory_format=torch.channels_last), seeded())
    assert torch.allclose(model(x, seeded()), other, atol=1e-6)


def test_half_precision_and_double_models():
    x = torch.rand(3, 3, 8, 8)
    assert tiny(noise_std=0.1).bfloat16().eval()(x.bfloat16()).dtype == torch.bfloat16
    assert tiny(noise_std=0.1).double().eval()(x.double()).dtype == torch.float64
    assert tiny().bfloat16().feature_shape((3, 8, 8)) == (4, 4, 4)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((abs, Channel(), nn.Identity()), "edge is a builtin_function_or_method"),
        ((nn.Identity(), Channel(), None), "cloud is a NoneType"),
        ((nn.Identity(), nn.Identity(), Channel()), "the order is edge, channel, cloud"),
    ],
)
def test_wrong_parts_are_refused(parts, text):
    with pytest.raises(ConfigError, match=text):
        SplitModel(*parts)
