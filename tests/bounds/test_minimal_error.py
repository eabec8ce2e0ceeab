import numpy as np
import pytest
import torch
from bounds_oracles import linear_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.bounds import (
    conditional_entropy,
    maximal_conditional_entropy,
    minimal_mse,
    mixture_information,
    posterior_mse,
)
from sfumato.errors import ConfigError, FeatureError


def test_theorem_1_literals():
    assert minimal_mse(0.0, 7).item() == pytest.approx(0.05854983152431917, rel=1e-12)  # 1 / (2 pi e)
    assert minimal_mse(1.4189385332046727, 1).item() == pytest.approx(1.0, rel=1e-12)  # a unit Gaussian
    assert minimal_mse(-np.inf, 3072).item() == 0.0
    np.testing.assert_allclose(minimal_mse(torch.tensor([0.0, 3.0]), 3), [0.0585498315, 0.4326279894], rtol=1e-6)


@given(seed=st.integers(0, 10_000), d=st.integers(1, 5), dim=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_theorem_1_on_the_linear_channel(seed, d, dim):
    channel = linear_gaussian(seed, d, dim)
    exact = np.trace(channel.posterior) / d
    bound = minimal_mse(channel.left_entropy, d).item()
    assert bound <= exact * (1 + 1e-9)
    # For a Gaussian posterior the bound is the geometric mean of its eigenvalues, the error their mean.
    geometric = np.exp(np.mean(np.log(np.linalg.eigvalsh(channel.posterior))))
    assert bound == pytest.approx(geometric, rel=1e-9)
    assert posterior_mse(channel.posterior).item() == pytest.approx(exact, rel=1e-12)


def test_theorem_1_is_attained_by_an_isotropic_posterior():
    # x ~ N(0, 4 I), z = x + N(0, 4 I): posterior variance 2 in each of 3 directions.
    entropy = conditional_entropy(6.336257141, mixture_information([1.0], [4.0], 4.0, dim=3))
    assert minimal_mse(entropy, 3).item() == pytest.approx(2.0, rel=1e-8)


@given(seed=st.integers(0, 10_000), d=st.integers(1, 4), dim=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_the_whole_chain_is_below_the_best_reconstruction(seed, d, dim):
    channel = linear_gaussian(seed, d, dim)
    information = mixture_information([1.0], channel.feature_covariance[None], channel.noise)
    entropy = conditional_entropy(channel.input_entropy, information)
    assert entropy.item() == pytest.approx(channel.left_entropy, abs=1e-8)
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal(np.zeros(d), channel.prior, size=4000)
    z = x @ channel.encoder.T + rng.multivariate_normal(np.zeros(dim), channel.noise, size=4000)
    gain = channel.posterior @ channel.encoder.T @ np.linalg.inv(channel.noise)
    errors = np.square(x - z @ gain.T).mean(1)
    assert errors.mean() >= minimal_mse(entropy, d).item() - 4 * errors.std() / np.sqrt(4000)


def test_inverse_of_theorem_1():
    assert maximal_conditional_entropy(1.0, 2).item() == pytest.approx(2.8378770664093453, rel=1e-12)
    assert maximal_conditional_entropy(0.0, 2).item() == -np.inf
    errors = torch.tensor([1e-4, 0.02, 3.0], dtype=torch.float64)
    torch.testing.assert_close(minimal_mse(maximal_conditional_entropy(errors, 3072), 3072), errors)


def test_posterior_mse_averages_over_samples_in_every_family():
    matrices = torch.tensor([[[1.0, 0.5], [0.5, 2.0]], [[3.0, 0.0], [0.0, 4.0]]])
    assert posterior_mse(matrices).item() == 2.5
    assert posterior_mse(matrices[0]).item() == 1.5
    assert posterior_mse([[1.0, 2.0], [3.0, 4.0]], family="diagonal").item() == 2.5
    assert posterior_mse([1.0, 4.0], family="spherical", dim=9).item() == 2.5


def test_conditional_entropy_broadcasts():
    entropy = conditional_entropy(10.0, torch.tensor([0.0, 4.0]))
    assert entropy.tolist() == [10.0, 6.0]
    assert entropy.dtype == torch.float32


def test_gradients():
    entropy = torch.tensor([-3.0, 0.2], dtype=torch.float64, requires_grad=True)
    error = torch.tensor([0.1, 2.0], dtype=torch.float64, requires_grad=True)
    matrices = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: minimal_mse(h, 4), (entropy,))
    assert torch.autograd.gradcheck(lambda e: maximal_conditional_entropy(e, 4), (error,))
    assert torch.autograd.gradcheck(posterior_mse, (matrices,))
    assert torch.autograd.gradcheck(conditional_entropy, (entropy, error))


def test_float32_follows_float64():
    entropy = torch.linspace(-9000.0, 9000.0, 50, dtype=torch.float64)
    wide, narrow = minimal_mse(entropy, 3072), minimal_mse(entropy.float(), 3072)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: minimal_mse(0.0, 0), ConfigError, "dim is 0; pass the number of dimensions as a positive"),
        (lambda: minimal_mse(0.0, 3.5), ConfigError, r"dim is 3\.5"),
        (lambda: minimal_mse(0.0, True), ConfigError, "dim is True"),
        (lambda: minimal_mse(float("nan"), 3), FeatureError, "conditional_entropy holds NaN; find the step"),
        (
            lambda: maximal_conditional_entropy(-1.0, 3),
            FeatureError,
            "negative values; pass mean squared errors",
        ),
        (
            lambda: posterior_mse(torch.ones(0, 2, 2)),
            FeatureError,
            "empty; pass the covariance of at least one",
        ),
        (lambda: posterior_mse(torch.ones(3, 2)), FeatureError, "cannot be read as"),
        (
            lambda: conditional_entropy([1.0, 2.0], [1.0] * 3),
            FeatureError,
            "do not broadcast; pass one value",
        ),
        (lambda: conditional_entropy(1.0, float("nan")), FeatureError, "information holds NaN"),
    ],
)
def test_mistakes_are_explained(call, error, match):
    with pytest.raises(error, match=match):
        call()
