"""Held-out information against closed forms, numerical integration and Monte-Carlo by NumPy and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logsumexp

import sfumato
from sfumato import held_out_information
from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import held_out

SIGMA = 0.1


def mixture(seed, k, dim, spread=0.3):
    """Means and square roots of covariances that differ in shape and size."""
    rng = np.random.default_rng(seed)
    means = 0.5 * rng.standard_normal((k, dim))
    sizes = spread * np.exp(rng.uniform(-1, 0.5, k))
    roots = sizes[:, None, None] * rng.standard_normal((k, dim, dim)) / math.sqrt(dim)
    return means, roots


def drawn(seed, means, roots, per_cluster):
    rng = np.random.default_rng(seed)
    k, dim = means.shape
    owner = np.repeat(np.arange(k), per_cluster)
    steps = rng.standard_normal((len(owner), dim))
    return means[owner] + np.einsum("nij,nj->ni", roots[owner], steps), owner


def true_information(seed, means, roots, count=20_000):
    """-E log p(z) - h(eps) by Monte-Carlo, and its standard error."""
    rng = np.random.default_rng(seed)
    k, dim = means.shape
    clean, _ = drawn(seed + 1, means, roots, count // k)
    z = clean + SIGMA * rng.standard_normal(clean.shape)
    noise = SIGMA**2 * np.eye(dim)
    logs = [stats.multivariate_normal(m, r @ r.T + noise).logpdf(z) for m, r in zip(means, roots, strict=True)]
    log = logsumexp(np.stack(logs), axis=0) - math.log(k)
    return -log.mean() - dim / 2 * math.log(2 * math.pi * math.e * SIGMA**2), log.std() / math.sqrt(len(log))


def test_one_gaussian_in_closed_form():
    variances = torch.tensor([4.0, 1.0, 0.25, 0.01])
    z_hat = variances.sqrt() * torch.randn(1500, 4, generator=torch.Generator().manual_seed(0))
    found = held_out_information(z_hat + 7, None, noise_std=0.5)
    exact = float(torch.log1p(variances / 0.25).sum() / 2)
    assert abs(found.value - exact) < 3 * found.standard_error + 0.03
    assert 0.01 < found.standard_error < 0.05


@pytest.mark.parametrize("k", [3, 10])
def test_is_never_below_the_truth_of_a_mixture_and_not_far_above(k):
    means, roots = mixture(k, k, 16)
    truth, error = true_information(k, means, roots)
    gaps = []
    for seed in range(2):
        z_hat, owner = drawn(100 + seed, means, roots, 40)
        found = held_out_information(torch.from_numpy(z_hat), torch.from_numpy(owner), SIGMA, seed)
        assert found.value > truth - 3 * math.hypot(error, found.standard_error)
        gaps.append(found.value - truth)
    assert np.mean(gaps) < 4.0, gaps  # of some 20 nats


def test_in_sample_moments_would_be_below_the_truth():
    """The reason for all this: Theorem 2 with sample moments undercuts the truth that the held-out value keeps."""
    means, roots = mixture(0, 4, 32)
    truth, error = true_information(0, means, roots)
    z_hat, owner = drawn(5, means, roots, 20)
    samples = [z_hat[owner == j] for j in range(4)]
    plugged = sfumato.bounds.mixture_information(
        [0.25] * 4, np.stack([np.cov(part.T, bias=True) for part in samples]), SIGMA**2
    ).item()
    assert plugged < truth - 1
    found = held_out_information(torch.from_numpy(z_hat), torch.from_numpy(owner), SIGMA)
    assert found.value > truth - 3 * math.hypot(error, found.standard_error)


def test_uniform_features_by_quadrature():
    """A density that no candidate has: z = u + eps with u uniform on [0, 1], in three independent coordinates."""

    def integrand(z):
        density = stats.norm.cdf(z / SIGMA) - stats.norm.cdf((z - 1) / SIGMA)
        return -density * math.log(density) if density > 0 else 0.0

    one = integrate.quad(integrand, -1, 2)[0] - math.log(2 * math.pi * math.e * SIGMA**2) / 2
    z_hat = torch.rand(1000, 3, generator=torch.Generator().manual_seed(1))
    found = held_out_information(z_hat, None, SIGMA)
    assert 3 * one - 3 * found.standard_error < found.value < 3 * one + 0.6


def test_two_points_hold_one_bit():
    z_hat = torch.ones(200, 6) * (torch.arange(200) % 2)[:, None]
    labels = torch.where(torch.arange(200) % 2 == 0, -7, 1000)  # any two values
    found = held_out_information(z_hat, labels, SIGMA)
    assert found.value == pytest.approx(math.log(2), abs=0.05)
    assert held_out_information(z_hat, None, SIGMA).value == pytest.approx(math.log(2), abs=0.1)


@pytest.mark.parametrize("dim", [40, 400])
def test_more_dimensions_than_features(dim):
    """All the signal in 4 directions: what is learned there holds, and the rest costs little."""
    rng = torch.Generator().manual_seed(dim)
    basis = torch.linalg.qr(torch.randn(dim, 4, generator=rng))[0]
    z_hat = torch.randn(60, 4, generator=rng) @ basis.T
    found = held_out_information(z_hat, None, SIGMA)
    exact = 2 * math.log(1 + 1 / SIGMA**2)
    assert exact - 3 * found.standard_error < found.value < exact + 3


def test_classes_of_one_two_and_no_sample_in_a_fold():
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(200, 24, generator=rng)
    z_hat = centres.repeat_interleave(2, 0) + 0.05 * torch.randn(400, 24, generator=rng)
    labels = torch.arange(200).repeat_interleave(2)
    by_class = held_out_information(z_hat, labels, SIGMA)
    alone = held_out_information(z_hat, torch.arange(400), SIGMA)
    # One of 200 centres, known but for its 0.05: log 200 and 12 log(1 + .25) nats, from one other image each.
    assert math.log(200) < by_class.value < alone.value
    assert by_class.value < math.log(200) + 12 * math.log(1 + 3 * 0.25) + 3
    assert math.isfinite(alone.value)


def test_without_the_features_own_axes_wide_features_need_no_basis(monkeypatch):
    z_hat = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) @ torch.eye(4, 400)
    whole = held_out_information(z_hat, None, SIGMA)
    monkeypatch.setattr(held_out, "_GIVEN_AXES_UP_TO", 0)
    lean = held_out_information(z_hat, None, SIGMA)
    assert lean.value == pytest.approx(whole.value, abs=4 * whole.standard_error)
    assert 2 * math.log(1 + 1 / SIGMA**2) - 3 * lean.standard_error < lean.value


def test_quick_is_as_valid_and_a_little_looser():
    means, roots = mixture(3, 3, 16)
    truth, error = true_information(3, means, roots)
    z_hat, owner = map(torch.from_numpy, drawn(100, means, roots, 40))
    whole, quick = (held_out_information(z_hat, owner, SIGMA, quick=quick) for quick in (False, True))
    assert quick.value > truth - 3 * math.hypot(error, quick.standard_error)
    assert abs(quick.value - whole.value) < 0.1 * truth


def test_an_outlier_costs_its_share_and_no_more():
    z_hat = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    before = held_out_information(z_hat, None, 0.5, quick=True)
    z_hat[0] = 1e6
    after = held_out_information(z_hat, None, 0.5, quick=True)
    assert before.value < after.value < before.value + 15
    assert after.standard_error > before.standard_error


def test_depends_on_signal_to_noise_alone_and_on_the_seed_alone():
    z_hat = torch.randn(60, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(60) % 3
    found = held_out_information(z_hat, labels, 0.25, seed=3)
    assert held_out_information(z_hat, labels, 0.25, seed=3) == found
    assert held_out_information(z_hat, labels, 0.25, seed=4) != found
    moved = held_out_information(8 * z_hat.flatten(1) + 1, labels, 2.0, seed=3)
    assert moved.value == pytest.approx(found.value, abs=1e-9)


def test_standard_error_is_the_spread_over_samples():
    values = []
    for seed in range(12):
        z_hat = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
        values.append(held_out_information(z_hat, torch.zeros(60, dtype=torch.int64), 0.5, seed, quick=True))
    spread = np.std([found.value for found in values], ddof=1)
    assert np.mean([found.standard_error for found in values]) == pytest.approx(spread, rel=0.6)


def test_at_most_is_three_errors_up_and_never_negative():
    assert sfumato.HeldOutInformation(2.0, 0.5).at_most == 3.5
    assert sfumato.HeldOutInformation(-1.0, 0.1).at_most == 0.0


@pytest.mark.parametrize(
    ("features", "labels", "noise_std", "error", "match"),
    [
        (torch.zeros(9, 2), None, 0.0, ConfigError, "without noise the information is infinite"),
        (torch.zeros(9, 2), None, float("nan"), ConfigError, "without noise"),
        (torch.zeros(3, 2), None, 0.1, FeatureError, r"features are \(3, 2\); pass a tensor .* at least 4"),
        ([[1.0]], None, 0.1, FeatureError, "features are a list"),
        (torch.full((9, 2), torch.nan), None, 0.1, FeatureError, "NaN or infinite"),
        (torch.zeros(9, 2), torch.zeros(8).long(), 0.1, FeatureError, "pass one integer for each, or None"),
        (torch.zeros(9, 2), torch.zeros(9), 0.1, FeatureError, "labels are torch.float32"),
    ],
)
def test_mistakes_are_explained(features, labels, noise_std, error, match):
    with pytest.raises(error, match=match):
        held_out_information(features, labels, noise_std)


@pytest.mark.parametrize("count", [85, 97, 99, 101])
def test_where_folds_of_unequal_size_could_disagree_on_clusters(count):
    z_hat = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    found = held_out_information(z_hat, None, 1.0)
    assert found.value == pytest.approx(math.log(2), abs=4 * found.standard_error + 0.1)  # 2 * 1/2 log(1 + 1)
