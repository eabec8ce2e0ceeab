"""Certificates against root finders and distribution functions of scipy, and against simulated attackers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from sfumato.bounds import clipped_success_at_most, success_at_most
from sfumato.errors import ConfigError, FeatureError


def divergence(p, q):
    return stats.entropy([p, 1 - p], [q, 1 - q])


def inverse(prior, information):
    """By scipy's root finder, on the textbook form of the divergence."""
    return optimize.brentq(lambda p: divergence(p, prior) - information, prior, 1 - 1e-16, xtol=1e-15, rtol=1e-15)


@given(prior=st.floats(1e-6, 0.999), share=st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_is_the_root_that_scipy_finds(prior, share):
    information = -share * math.log(prior)
    found = success_at_most(prior, information).item()
    assert found == pytest.approx(inverse(prior, information), abs=1e-12)
    assert prior <= found <= 1


def test_literals_and_limits():
    # p log 2p + (1 - p) log 2(1 - p) with p = .9, from its definition.
    assert success_at_most(0.5, 0.36806420716849625).item() == pytest.approx(0.9, abs=1e-12)
    assert success_at_most(0.25, 0.0).item() == 0.25
    assert success_at_most(0.25, math.inf).item() == 1
    assert success_at_most(0.25, math.log(4)).item() == 1
    assert success_at_most(0.25, math.log(4) - 1e-6).item() < 1
    assert success_at_most([0.0, 0.0, 1.0, 1.0], [5.0, math.inf, 0.0, 5.0]).tolist() == [0, 1, 1, 1]
    # A small excess is sqrt(2 I kappa (1 - kappa)); the two terms of the divergence cancel to 1e-20 there.
    assert success_at_most(0.5, 2e-20).item() - 0.5 == pytest.approx(1e-10, rel=1e-5)
    # Far below the certificate of float32 and still relative: kappa (1 + d) with d^2 / 2 kappa = I.
    assert success_at_most(1e-12, 1e-20).item() / 1e-12 - 1 == pytest.approx(math.sqrt(2e-8), rel=1e-3)


def test_broadcasts_in_float64_whatever_comes_in():
    prior = torch.tensor([[0.1], [0.5]], requires_grad=True)
    found = success_at_most(prior, np.float32([0.0, 0.1, 3.0]))
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert found[1, 2] == 1
    assert bool((found.diff(dim=1) > 0).all())
    assert clipped_success_at_most(prior, [0.0, 1.0, 3.0], 1.0).shape == (2, 3)


@given(prior=st.floats(1e-9, 1 - 1e-9), radius=st.floats(0, 8), sigma=st.floats(0.1, 5))
@settings(max_examples=60, deadline=None)
def test_clipped_is_the_gaussian_trade_off(prior, radius, sigma):
    found = clipped_success_at_most(prior, radius, sigma).item()
    # One minus the type II error of scipy's normal at level `prior`.
    threshold = stats.norm.isf(prior)
    assert found == pytest.approx(stats.norm.sf(threshold, loc=radius / sigma), abs=1e-12)


def test_clipped_limits():
    assert clipped_success_at_most(0.2, 0.0, 1.0).item() == pytest.approx(0.2, abs=1e-15)
    assert clipped_success_at_most(0.2, 1.0, 0.0).item() == 1
    assert clipped_success_at_most([0.0, 1.0], 3.0, 1.0).tolist() == [0, 1]
    once, four = clipped_success_at_most(0.01, 1.0, 1.0), clipped_success_at_most(0.01, 1.0, 1 / math.sqrt(4))
    assert four.item() == pytest.approx(clipped_success_at_most(0.01, 2.0, 1.0).item(), abs=1e-15)
    assert four > once


def test_two_antipodal_points_by_quadrature():
    """z_hat = +-R, both equally likely: best success Phi(R / sigma), information by numerical integration."""
    for radius in (0.05, 0.3, 1.0, 2.0):
        success = stats.norm.cdf(radius)

        def integrand(z, radius=radius):
            density = (stats.norm.pdf(z - radius) + stats.norm.pdf(z + radius)) / 2
            return -density * math.log(density)

        information = integrate.quad(integrand, -radius - 12, radius + 12)[0] - math.log(2 * math.pi * math.e) / 2
        assert success <= success_at_most(0.5, information).item() + 1e-12
        # Nothing is given away that two points on the sphere cannot attain.
        assert clipped_success_at_most(0.5, radius, 1.0).item() == pytest.approx(success, abs=1e-12)


@pytest.mark.parametrize(("count", "dim", "sigma"), [(2, 1, 1.0), (10, 3, 0.7), (50, 8, 1.5), (200, 32, 0.3)])
def test_the_best_identifier_never_exceeds_a_certificate(count, dim, sigma):
    """Maximum likelihood among N points of the unit sphere: nobody names the point sent more often."""
    rng = np.random.default_rng(count)
    points = rng.standard_normal((count, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    draws = 20_000
    sent = rng.integers(count, size=draws)
    z = points[sent] + sigma * rng.standard_normal((draws, dim))
    log = -((z[:, None] - points) ** 2).sum(-1) / (2 * sigma**2)
    success, error = (log.argmax(1) == sent).mean(), 1 / (2 * math.sqrt(draws))
    # I = log N - H(index | z), exactly for these points, up to the sampling of z.
    posterior = log - np.logaddexp.reduce(log, axis=1, keepdims=True)
    terms = math.log(count) + posterior[np.arange(draws), sent]
    information = max(0.0, terms.mean() + 3 * terms.std() / math.sqrt(draws))
    assert success - 3 * error <= success_at_most(1 / count, information).item()
    assert success - 3 * error <= clipped_success_at_most(1 / count, 1.0, sigma).item()


@pytest.mark.parametrize(
    ("function", "arguments", "error", "match"),
    [
        (success_at_most, (1.1, 1.0), ConfigError, "prior is not a probability; pass .* such as 1 / N"),
        (success_at_most, (-0.1, 1.0), ConfigError, "prior is not a probability"),
        (success_at_most, (float("nan"), 1.0), ConfigError, "prior is not a probability"),
        (success_at_most, (0.1, -1.0), ConfigError, "information is negative or NaN; pass an upper bound"),
        (success_at_most, (0.1, float("nan")), ConfigError, "information is negative or NaN"),
        (success_at_most, ([0.1, 0.2], [1.0] * 3), FeatureError, "do not broadcast"),
        (success_at_most, ("often", 1.0), FeatureError, "prior is not numeric"),
        (clipped_success_at_most, (2.0, 1.0, 1.0), ConfigError, "prior is not a probability"),
        (clipped_success_at_most, (0.1, -1.0, 1.0), ConfigError, "radius is negative or NaN"),
        (clipped_success_at_most, (0.1, 1.0, -1.0), ConfigError, "noise_std is negative or NaN"),
        (clipped_success_at_most, (0.1, 1.0, float("nan")), ConfigError, "noise_std is negative or NaN"),
    ],
)
def test_mistakes_are_explained(function, arguments, error, match):
    with pytest.raises(error, match=match):
        function(*arguments)
