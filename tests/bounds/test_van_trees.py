import numpy as np
import pytest
import torch
from bounds_oracles import linear_gaussian, spd
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.bounds import fisher_factor, fisher_information, van_trees, van_trees_low_rank
from sfumato.errors import ConfigError, FeatureError


@given(seed=st.integers(0, 10_000), d=st.integers(1, 6), dim=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_is_exact_in_the_linear_gaussian_case(seed, d, dim):
    case = linear_gaussian(seed, d, dim)
    exact = np.trace(case.posterior) / d
    known = fisher_information(np.stack([case.encoder] * 3), case.noise)
    assert float(van_trees(known, np.linalg.inv(case.prior))) == pytest.approx(exact, rel=1e-6)


@given(seed=st.integers(0, 10_000), d=st.integers(1, 8), rows=st.integers(0, 12))
@settings(max_examples=30, deadline=None)
def test_the_low_rank_form_is_the_same_number(seed, d, rows):
    rng = np.random.default_rng(seed)
    factor, prior = rng.standard_normal((rows, d)), rng.uniform(0.2, 3.0, d)
    exact = np.trace(np.linalg.inv(factor.T @ factor + np.diag(prior))) / d
    assert float(van_trees_low_rank(factor, prior)) == pytest.approx(exact, rel=1e-8)
    assert float(van_trees(factor.T @ factor, prior)) == pytest.approx(exact, rel=1e-8)


def test_what_is_neither_seen_nor_limited():
    assert float(van_trees(torch.zeros(3, 3), 4.0)) == pytest.approx(0.25)  # nothing seen: the prior's variance
    assert float(van_trees(torch.zeros(2, 2), [[2.0, 0.0], [0.0, 8.0]])) == pytest.approx((1 / 2 + 1 / 8) / 2)
    with pytest.raises(ConfigError, match="not positive definite"):
        van_trees(torch.diag(torch.tensor([1.0, 0.0])), 0.0)


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_lies_below_the_exact_minimal_error_of_a_nonlinear_channel(noise):
    """x ~ N(0, 1), z = tanh(2 x) + eps: the posterior mean's error by quadrature in both variables."""
    x = np.linspace(-6, 6, 2401)
    z = np.linspace(-1 - 6 * noise, 1 + 6 * noise, 1601)
    prior = np.exp(-(x**2) / 2)
    prior /= prior.sum()
    joint = np.exp(-((z[:, None] - np.tanh(2 * x)) ** 2) / (2 * noise**2)) * prior
    evidence = joint.sum(1)
    mean = joint @ x / evidence
    left = (joint @ x**2 / evidence - mean**2) @ evidence / evidence.sum()
    slopes = 2 * (1 - np.tanh(2 * x) ** 2)
    floor = float(van_trees([[float((slopes**2 / noise**2) @ prior)]], 1.0))
    assert floor <= left * (1 + 1e-6)
    assert floor > 0.02 * left  # not empty either


def test_few_inputs_overstate_it():
    """The inverse is convex: over many draws the mean from one input lies above the value from all of them."""
    rng = np.random.default_rng(0)
    slopes = rng.standard_normal((400, 2, 3)) * rng.uniform(0.1, 3, (400, 1, 1))
    whole = float(van_trees(fisher_information(slopes, 0.1), 1.0))
    single = np.mean([float(van_trees(fisher_information(one[None], 0.1), 1.0)) for one in slopes])
    assert single > 1.2 * whole


def test_keeps_float32_and_gradients():
    factor = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: van_trees_low_rank(f, 0.7), factor)
    assert torch.autograd.gradcheck(lambda f: van_trees(f.mT @ f, 0.7), factor)
    narrow = van_trees(fisher_information(torch.randn(2, 3, 4), 0.1), 1.0)
    assert narrow.dtype == torch.float32
    whole = fisher_factor(torch.randn(2, 3, 4).double(), spd(0, 1, 3)[0])
    assert whole.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: van_trees(torch.ones(2, 3), 1.0), FeatureError, r"data_information has shape \(2, 3\)"),
        (lambda: van_trees(torch.eye(2), torch.ones(3)), FeatureError, "inputs of 2 dimensions"),
        (lambda: van_trees(torch.full((2, 2), torch.nan), 1.0), FeatureError, "NaN"),
        (lambda: van_trees_low_rank(torch.ones(3), 1.0), FeatureError, r"pass \(m, d\)"),
        (lambda: van_trees_low_rank(torch.ones(1, 3), torch.eye(3)), ConfigError, "use van_trees"),
        (lambda: van_trees_low_rank(torch.ones(1, 3), 0.0), ConfigError, "not positive"),
    ],
)
def test_mistakes_are_explained(call, error, match):
    with pytest.raises(error, match=match):
        call()
