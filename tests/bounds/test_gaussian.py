import numpy as np
import pytest
import torch
from bounds_oracles import linear_gaussian, spd
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from sfumato.bounds import gaussian_entropy, gaussian_information
from sfumato.errors import ConfigError, FeatureError


def test_entropy_of_literals():
    assert gaussian_entropy([1.0], family="diagonal").item() == pytest.approx(1.4189385332046727, abs=1e-12)
    assert gaussian_entropy(4.0, family="spherical", dim=3).item() == pytest.approx(6.33625714129, abs=1e-9)
    assert gaussian_entropy([[2.0, 1.0], [1.0, 2.0]]).item() == pytest.approx(3.38718321107, abs=1e-9)


def test_entropy_matches_scipy_in_every_family():
    covariances = spd(0, 4, 5)
    expected = [multivariate_normal(cov=matrix.numpy()).entropy() for matrix in covariances]
    np.testing.assert_allclose(gaussian_entropy(covariances), expected, rtol=1e-12)
    variances = covariances.diagonal(dim1=-2, dim2=-1)
    expected = [multivariate_normal(cov=np.diag(row.numpy())).entropy() for row in variances]
    np.testing.assert_allclose(gaussian_entropy(variances, family="diagonal"), expected, rtol=1e-12)


def test_information_of_literals():
    # 1/2 log(3/1) twice; 1/2 log|[[3, 1], [1, 3]]| = 1/2 log 8
    information = gaussian_information(2.0, 1.0, family="spherical", dim=2)
    assert information.item() == pytest.approx(1.0986122886681098, abs=1e-12)
    information = gaussian_information([[2.0, 1.0], [1.0, 2.0]], 1.0)
    assert information.item() == pytest.approx(1.0397207708399179, abs=1e-12)


@given(seed=st.integers(0, 10_000), d=st.integers(1, 5), dim=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_information_is_exact_on_the_linear_channel(seed, d, dim):
    channel = linear_gaussian(seed, d, dim)  # d < dim makes the feature covariance singular
    information = gaussian_information(channel.feature_covariance, channel.noise)
    expected = channel.input_entropy - channel.left_entropy
    assert information.item() == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_leading_axes_are_a_batch():
    covariances = spd(1, 6, 3).reshape(2, 3, 3, 3)
    together = gaussian_information(covariances, 0.3)
    assert together.shape == (2, 3)
    assert together[1, 2] == gaussian_information(covariances[1, 2], 0.3)
    assert gaussian_information(torch.ones(2, 4, 5), 0.3, family="diagonal").shape == (2, 4)
    assert gaussian_information(torch.ones(2, 4), 0.3, family="spherical", dim=5).shape == (2, 4)
    assert gaussian_information(torch.ones(0, 3, 3), 0.3).shape == (0,)


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("family", ["full", "diagonal", "spherical"])
def test_gradients(family, noise):
    sigma = {"full": spd(2, 2, 3), "diagonal": torch.rand(2, 3) + 0.1, "spherical": torch.rand(2) + 0.1}[family]
    sigma_p = {"scalar": torch.tensor(0.4), "diagonal": torch.rand(3) + 0.2, "full": spd(3, 1, 3)[0]}[noise]
    sigma, sigma_p = sigma.double().requires_grad_(), sigma_p.double().requires_grad_()
    dim = 3 if family == "spherical" else None
    assert torch.autograd.gradcheck(lambda s, p: gaussian_information(s, p, family=family, dim=dim), (sigma, sigma_p))
    assert torch.autograd.gradcheck(lambda s: gaussian_entropy(s, family=family, dim=dim), (sigma,))


def test_gradient_is_half_the_inverse():
    covariance = spd(4, 1, 4)[0].requires_grad_()
    gaussian_information(covariance, 0.3).backward()
    expected = np.linalg.inv(covariance.detach().numpy() + 0.3 * np.eye(4)) / 2
    np.testing.assert_allclose(covariance.grad, expected, rtol=1e-10)


def test_tiny_noise_and_singular_covariances_hold_in_float32():
    # Rank one with eigenvalue 1 against sigma^2 = 1e-4 in 64 dimensions: 1/2 log(1 + 1e4).
    direction = torch.full((64,), 0.125)
    information = gaussian_information(direction[:, None] * direction[None], 1e-4)
    assert information.dtype == torch.float32
    assert information.item() == pytest.approx(4.605220183488258, rel=1e-6)


def test_half_precision_and_autocast_are_computed_in_float32():
    covariance = spd(5, 1, 4)[0]
    expected = gaussian_information(covariance, 0.3).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gaussian_information(covariance.float(), 0.3).item() == pytest.approx(expected, rel=1e-5)
    low = gaussian_information(covariance.half(), 0.3)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(expected, rel=1e-2)


def test_python_numbers_follow_the_tensors():
    single = torch.ones(3, dtype=torch.float32)
    assert gaussian_information(single, 0.5, family="diagonal").dtype == torch.float32
    sigma_p = torch.tensor(0.5, dtype=torch.float64)
    assert gaussian_information(single, sigma_p, family="diagonal").dtype == torch.float32
    assert gaussian_information(np.ones(3), 0.5, family="diagonal").dtype == torch.float64
    assert gaussian_information([1, 1, 1], 0.5, family="diagonal").dtype == torch.float64


def test_a_list_of_tensors_keeps_its_gradient():
    variance = torch.tensor(1.0, requires_grad=True)
    gaussian_information([variance, 2.0], 1.0, family="diagonal").backward()
    assert variance.grad.item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("covariance", "options", "error", "match"),
    [
        (
            torch.ones(2, 3),
            {},
            FeatureError,
            r"of shape \(2, 3\) cannot be read as \(\.\.\., D, D\), the full",
        ),
        (torch.tensor(1.0), {"family": "diagonal"}, FeatureError, "reshape, or name another family"),
        (torch.ones(2), {"family": "spherical"}, ConfigError, "pass dim=D by keyword"),
        (
            torch.ones(2),
            {"family": "diagonal", "dim": 3},
            ConfigError,
            r"dim=3 contradicts covariance of shape \(2,\); leave dim out or pass 2",
        ),
        (torch.ones(2), {"family": "round"}, ConfigError, "choose 'full', 'diagonal' or 'spherical'"),
        (
            torch.tensor([[1.0, 0.9], [0.0, 1.0]]),
            {},
            FeatureError,
            r"must be symmetric; .* pass \(S \+ S.mT\) / 2",
        ),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), {}, FeatureError, "pass positive semidefinite matrices"),
        (
            torch.tensor([[1.0, 5.0], [5.0, 1.0]]),
            {},
            FeatureError,
            "covariance 0 is not positive semidefinite",
        ),
        (torch.tensor([-1.0]), {"family": "diagonal"}, FeatureError, r"floor them at 0 with .clamp\(min=0\)"),
        (torch.eye(2) * float("nan"), {}, FeatureError, "NaN or infinite values; find the step"),
        (torch.eye(2) * 1j, {}, FeatureError, "complex; pass real numbers"),
        ("abc", {}, FeatureError, "covariance is not numeric"),
    ],
)
def test_wrong_covariances_are_refused(covariance, options, error, match):
    with pytest.raises(error, match=match):
        gaussian_information(covariance, 1.0, **options)


@pytest.mark.parametrize(
    ("noise", "match"),
    [
        (0.0, "variance of 0: .* pass a positive variance"),
        ([1.0, 0.0], "variance of 0"),
        (-1.0, "negative variance; pass sigma"),
        (float("nan"), "NaN or infinite"),
        (
            torch.ones(3),
            r"shape \(3,\) for features of 2 dimensions; pass a variance, \(2,\) variances or a \(2, 2\)",
        ),
        (torch.ones(2, 2), "not positive definite: .* add a multiple of the identity"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "noise_covariance must be symmetric"),
    ],
)
def test_wrong_noise_is_refused(noise, match):
    with pytest.raises(ConfigError, match=match):
        gaussian_information(torch.eye(2), noise)


@pytest.mark.parametrize(
    ("covariance", "family"), [(torch.zeros(2, 2), "full"), (torch.tensor([1.0, 0.0]), "diagonal")]
)
def test_entropy_of_a_singular_covariance_is_refused(covariance, family):
    with pytest.raises(FeatureError, match="minus infinity; remove constant dimensions or add the noise"):
        gaussian_entropy(covariance, family=family)
