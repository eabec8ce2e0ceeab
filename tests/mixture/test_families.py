import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import check_covariance, moments
from sfumato.mixture import families as families_module

FAMILIES = ("full", "diagonal", "spherical")


def loops(features, assignment, k, covariance):
    """Plain float64 numpy, one cluster at a time."""
    x, a = features.double().numpy(), assignment.numpy()
    means, covariances = [], []
    for j in range(k):
        own = x[a == j]
        mean = own.mean(0) if len(own) else np.zeros(x.shape[1])
        full = (own - mean).T @ (own - mean) / max(len(own), 1)
        means.append(mean)
        covariances.append(
            {"full": full, "diagonal": np.diag(full), "spherical": np.trace(full) / x.shape[1]}[covariance]
        )
    return torch.tensor(np.array(means)), torch.tensor(np.array(covariances))


@pytest.mark.parametrize("covariance", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 60), dim=st.integers(1, 7), k=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_moments_match_plain_loops(covariance, n, dim, k, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64) * 3 + 1
    assignment = torch.randint(0, k, (n,), generator=generator)
    found = moments(features, assignment, k, covariance)
    means, covariances = loops(features, assignment, k, covariance)
    assert found.counts.tolist() == [int((assignment == j).sum()) for j in range(k)]
    torch.testing.assert_close(found.means, means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariances, covariances, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_chunks_merge_exactly(covariance, monkeypatch):
    """Also where the chunks' means differ: sorted samples, 7 rows at a time."""
    monkeypatch.setattr(families_module, "chunk_rows", lambda width, device: 7)
    features = torch.randn(100, 4, dtype=torch.float64).sort(0).values
    assignment = torch.arange(100) % 3 // 2
    found = moments(features, assignment, 2, covariance)
    means, covariances = loops(features, assignment, 2, covariance)
    torch.testing.assert_close(found.means, means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariances, covariances, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_an_offset_costs_no_digits_in_float32(covariance):
    """E[x^2] - E[x]^2 would be off by about 1e6 * 6e-8 = 6 % of a variance of 1 here."""
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(5000, 6, generator=generator) + 1000.0).float()
    assignment = torch.randint(0, 2, (5000,), generator=generator)
    found = moments(features, assignment, 2, covariance)
    means, covariances = loops(features, assignment, 2, covariance)
    torch.testing.assert_close(found.means.double(), means, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.covariances.double(), covariances, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_the_rounding_of_the_mean_is_taken_out_of_the_variance(covariance):
    """At 2^20 float32 is a grid of 1/8: the mean is rounded by up to a quarter of the standard deviation of 0.25."""
    steps = torch.randint(0, 8, (1001, 3), generator=torch.Generator().manual_seed(0)) // 2
    features = (2**20 + steps / 8.0).float()
    found = moments(features, torch.zeros(1001, dtype=torch.int64), 1, covariance)
    _, covariances = loops(features, torch.zeros(1001, dtype=torch.int64), 1, covariance)
    torch.testing.assert_close(found.covariances.double(), covariances, rtol=1e-4, atol=1e-5)


def test_one_sample_and_no_sample():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
    fallback = torch.full((3, 2), 9.0)
    found = moments(features, torch.tensor([0, 2, 2]), 3, "full", fallback=fallback)
    assert found.counts.tolist() == [1, 0, 2]
    assert found.means.tolist() == [[1.0, 2.0], [9.0, 9.0], [4.0, 2.0]]
    assert found.covariances.tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1.0, -2.0], [-2.0, 4.0]]]
    assert moments(features, torch.tensor([0, 2, 2]), 3, "spherical").covariances.tolist() == [0.0, 0.0, 2.5]
    assert moments(features[:0], torch.empty(0, dtype=torch.int64), 2, "full").counts.tolist() == [0, 0]


def test_copies_have_covariance_zero():
    features = torch.tensor([[0.1, 0.7, 123.4]]).repeat(999, 1)
    for covariance in FAMILIES:
        found = moments(features, torch.zeros(999, dtype=torch.int64), 1, covariance)
        torch.testing.assert_close(found.means[0], features[0], rtol=1e-6, atol=0)
        assert float(found.covariances.abs().max()) < 1e-9


def test_gradient():
    features = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assignment = torch.tensor([0, 0, 1, 1, 1, 3, 3])
    for covariance in FAMILIES:
        assert torch.autograd.gradcheck(lambda z, family=covariance: moments(z, assignment, 4, family)[1:], features)


def test_errors_say_what_to_do():
    good = torch.zeros(3, 2)
    index = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"'tie'; choose one of full, tied, diagonal, spherical"):
        check_covariance("tie")
    with pytest.raises(ConfigError, match="covariance is 'x'"):
        moments(good, index, 1, "x")
    with pytest.raises(FeatureError, match=r"bfloat16 \(3, 2\); convert them with features.flatten\(1\).float\(\)"):
        moments(good.bfloat16(), index, 1, "full")
    with pytest.raises(FeatureError, match=r"reach from 0 to 5, outside 0 to 4; check the number of clusters"):
        moments(good, torch.tensor([0, 5, 1]), 5, "full")
    with pytest.raises(FeatureError, match=r"must be int64 of shape \(3,\)"):
        moments(good, index[:2], 1, "full")
    with pytest.raises(FeatureError, match=r"fallback means have shape \(2, 2\); pass \(1, 2\)"):
        moments(good, index, 1, "full", fallback=torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="k is 0; give at least 1"):
        moments(good, index, 0, "full")
