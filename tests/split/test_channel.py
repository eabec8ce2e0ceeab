import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.split import Channel


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Halve(nn.Module):
    def forward(self, x):
        return x / 2


class AddOne(nn.Module):
    def forward(self, x):
        return x + 1


class Jitter(nn.Module):
    stochastic = True

    def forward(self, x, generator=None):
        return x + torch.rand(x.shape, generator=generator)


def test_the_default_channel_changes_nothing():
    x = torch.randn(3, 4, 2, 2)
    assert torch.equal(Channel()(x), x)


def test_clip_puts_long_vectors_on_the_sphere_and_keeps_short_ones():
    x = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]], [[0.0, 0.0]]])
    z_hat = Channel(clip_norm=1.0).bound(x)
    assert torch.allclose(z_hat, torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]], [[0.0, 0.0]]]))
    assert torch.equal(z_hat[1:], x[1:])


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e4), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_no_sample_leaves_the_ball(scale, radius, seed):
    x = scale * torch.randn(5, 3, 4, 4, generator=seeded(seed))
    norms = Channel(clip_norm=radius).bound(x).flatten(1).double().norm(dim=1)
    assert float(norms.max()) <= radius * (1 + 1e-6)


def test_clip_has_finite_gradients_at_zero():
    x = torch.zeros(2, 6, requires_grad=True)
    Channel(clip_norm=1.0).bound(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 6))


def test_clip_gradient_is_that_of_normalising():
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    Channel(clip_norm=1.0).bound(x)[0, 0].backward()
    assert torch.allclose(x.grad, torch.tensor([[0.128, -0.096]], dtype=torch.float64))  # (1 - 9/25)/5, -12/125


def test_noise_has_the_standard_deviation_asked_for_in_both_modes():
    channel = Channel(noise_std=0.3)
    for mode in (True, False):
        z = channel.train(mode).release(torch.zeros(200, 1000), seeded())
        assert float(z.mean()) == pytest.approx(0.0, abs=4 * 0.3 / 200_000**0.5)
        assert float(z.std()) == pytest.approx(0.3, rel=0.01)
        assert torch.allclose((z[:, :-1] * z[:, 1:]).mean(), torch.tensor(0.0), atol=0.001)


def test_noise_repeats_with_the_generator_and_only_then():
    channel, x = Channel(noise_std=1.0), torch.zeros(4, 8)
    assert torch.equal(channel.release(x, seeded()), channel.release(x, seeded()))
    assert not torch.equal(channel.release(x, seeded()), channel.release(x, seeded(1)))
    generator = seeded()
    assert not torch.equal(channel.release(x, generator), channel.release(x, generator))
    assert not torch.equal(channel.release(x), channel.release(x))


def test_noise_belongs_to_coordinates_not_to_memory_layout():
    x = torch.rand(2, 3, 4, 5)
    channel = Channel(noise_std=0.5)
    a, b = channel(x, seeded()), channel(x.contiguous(memory_format=torch.channels_last), seeded())
    assert torch.equal(a, b)


def test_quantised_values_are_levels_exactly():
    channel = Channel(noise_std=0.25, quantize_bits=2)  # four levels from -1 to 2
    z = channel.release(torch.rand(50, 40), seeded())
    assert channel.quantization_range == (-1.0, 2.0)
    assert set(z.unique().tolist()) == {-1.0, 0.0, 1.0, 2.0}


def test_quantiser_rounds_to_the_nearest_level_and_stops_at_the_ends():
    channel = Channel(quantize_bits=1, low=-2.0, high=4.0)
    z = channel.release(torch.tensor([[-9.0, 0.9, 1.1, 9.0]]))
    assert z.tolist() == [[-2.0, -2.0, 4.0, 4.0]]


def test_training_and_inference_quantise_alike():
    """A straight-through z + (levels - z) would leave residues of z in the low bits: here level - z crosses 1/8."""
    channel = Channel(low=-0.4, high=1.4, quantize_bits=3)
    x = torch.linspace(-0.014, -0.011, 1000)[None]
    trained = channel.release(x.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(channel.release(x), trained)
    assert len(trained.unique()) == 1


def test_quantisation_error_is_at_most_half_a_level():
    x = torch.rand(100, 50)
    error = (Channel(quantize_bits=8).release(x) - x).abs().max()
    assert 0.0015 < float(error) <= 0.5 / 255 + 1e-6


def test_quantiser_gradient_passes_straight_through():
    x = torch.tensor([[0.1, 0.7, 5.0]], requires_grad=True)
    (Channel(quantize_bits=3).release(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_transforms_come_first_and_in_order():
    z_hat = Channel(transforms=[AddOne(), Halve()], clip_norm=1.0).bound(
        torch.tensor([[0.0, 0.0, 0.0], [7.0, 1.0, -1.0]])
    )
    assert z_hat[0].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert z_hat[1].tolist() == pytest.approx([4 / 17**0.5, 1 / 17**0.5, 0.0])


def test_stochastic_transforms_draw_from_the_generator():
    channel, x = Channel(transforms=[Jitter()], noise_std=0.1), torch.zeros(2, 3)
    assert torch.equal(channel(x, seeded()), channel(x, seeded()))
    assert not torch.equal(channel(x, seeded()), channel(x, seeded(1)))


def test_everything_random_comes_after_the_bounded_feature():
    channel, x = Channel(transforms=[Jitter(), AddOne()], clip_norm=1.0), torch.zeros(4, 3)
    assert torch.equal(channel.bound(x), channel.bound(x))
    assert channel.bound(x)[0].tolist() == pytest.approx([3**-0.5] * 3)  # AddOne and the clip, no jitter
    z = channel(x, seeded())
    assert not torch.equal(z, channel.bound(x))
    assert float(z.norm(dim=1).max()) <= 1 + 1e-6  # a random transform cannot leave the ball either


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{"clip_norm": 1.0}, {"quantize_bits": 4}, {"clip_norm": 1.0, "quantize_bits": 4}])
def test_broken_features_stay_visible(bad, settings):
    x = torch.tensor([[bad, 1.0], [0.5, 0.5]])
    z = Channel(**settings)(x)
    assert bool(z[0].isnan().any())
    assert bool(z[1].isfinite().all())


def test_half_precision_features_get_full_precision_noise():
    z = Channel(noise_std=0.01).forward(torch.ones(4, 100, dtype=torch.bfloat16), seeded())
    assert z.dtype == torch.float32
    assert len(z.unique()) > 390  # in bfloat16 only a handful of values lie near 1
    assert Channel()(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_empty_batch():
    assert Channel(noise_std=0.1, clip_norm=1.0, quantize_bits=3)(torch.zeros(0, 2, 3)).shape == (0, 2, 3)


def test_its_settings_are_shown():
    text = repr(Channel(noise_std=0.1, clip_norm=2.0, quantize_bits=8))
    for part in ("noise_std=0.1", "clip_norm=2.0", "quantize_bits=8", "low=0.0", "high=1.0"):
        assert part in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"noise_std": -0.1}, "noise_std is -0.1; give a finite standard deviation"),
        ({"noise_std": float("nan")}, "noise_std is nan"),
        ({"noise_std": True}, "noise_std is True"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; give a finite radius above 0"),
        ({"clip_norm": float("inf")}, "clip_norm is inf"),
        ({"quantize_bits": 0}, "quantize_bits is 0; give a whole number from 1 to 16"),
        ({"quantize_bits": 17}, "quantize_bits is 17"),
        ({"quantize_bits": 8.0}, "quantize_bits is 8.0"),
        ({"low": 1.0, "high": 1.0}, "low below high"),
        ({"transforms": [abs]}, r"wrap it in a torch\.nn\.Module"),
    ],
)
def test_meaningless_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Channel(**settings)


@pytest.mark.parametrize("output", [(torch.zeros(1, 2),), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(3)])
def test_an_encoder_has_to_give_one_float_tensor(output):
    with pytest.raises(FeatureError, match="one floating-point tensor"):
        Channel().bound(output)
