import numpy as np
import pytest
import torch
from bounds_oracles import sampled_information, spd
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.bounds import clipped_power_information, mixture_information
from sfumato.errors import ConfigError, FeatureError


def test_literals():
    assert clipped_power_information(2.0, 0.5, 4).item() == pytest.approx(3.2188758248682006)  # 2 log 5
    assert clipped_power_information(0.0, 0.5, 4).item() == 0.0
    # Many dimensions: R^2 / (2 sigma^2).
    assert clipped_power_information(3.0, 1.0, 10**9).item() == pytest.approx(4.5, rel=1e-6)
    batch = clipped_power_information(torch.tensor([1.0, 2.0]), 1.0, 1)
    np.testing.assert_allclose(batch, [0.34657359, 0.80471896], rtol=1e-6)


def test_bounds_two_antipodal_points():
    # z_hat = +-R in one dimension: I is below log 2 and below the bound, by sampling.
    for radius in (0.1, 0.5, 1.0):
        sigma = np.array([[0.25]])
        exact, error = sampled_information(0, 20_000, [0.5, 0.5], np.array([[-radius], [radius]]), [0.0, 0.0], sigma)
        bound = clipped_power_information(radius, 0.5, 1).item()
        assert exact - 3 * error <= bound <= exact + 0.2


@given(seed=st.integers(0, 10_000), dim=st.integers(1, 6), radius=st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_is_above_every_gaussian_of_that_power(seed, dim, radius):
    sigma = spd(seed, 1, dim)
    sigma = sigma * radius**2 / sigma[0].trace()
    value = mixture_information([1.0], sigma, 0.5**2).item()
    bound = clipped_power_information(radius, 0.5, dim).item()
    assert value <= bound + 1e-9
    even = mixture_information([1.0], [radius**2 / dim], 0.5**2, dim=dim).item()
    assert even == pytest.approx(bound, rel=1e-10)


def test_gradcheck_and_float32():
    radius = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, s: clipped_power_information(r, s, 5), (radius, noise))
    wide = clipped_power_information(radius.detach(), 0.025, 512)
    narrow = clipped_power_information(radius.detach().float(), 0.025, 512)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((1.0, 0.0, 3), ConfigError, "noise_std is not positive: .* pass sigma > 0"),
        ((1.0, float("nan"), 3), ConfigError, "noise_std is not positive"),
        ((-1.0, 1.0, 3), ConfigError, "radius is negative or NaN; pass the largest norm"),
        ((1.0, 1.0, 0), ConfigError, "dim is 0"),
        (([1.0, 2.0], [1.0] * 3, 3), FeatureError, "do not broadcast"),
    ],
)
def test_mistakes_are_explained(arguments, error, match):
    with pytest.raises(error, match=match):
        clipped_power_information(*arguments)
