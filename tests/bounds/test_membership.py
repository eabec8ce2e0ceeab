import numpy as np
import pytest
import torch
from bounds_oracles import as_matrix, log_joint, sample_mixture, simplex, spd
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.mixture import GaussianMixture

from sfumato.bounds import cluster_posterior, membership, own_cluster_posterior
from sfumato.errors import ConfigError, FeatureError

FAMILIES = ["full", "diagonal", "spherical"]


def mixture(seed, k=3, dim=4, family="full"):
    full = spd(seed, k, dim)
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(k, dim, generator=generator, dtype=torch.float64)
    sigma = {"full": full, "diagonal": full.diagonal(dim1=-2, dim2=-1), "spherical": full[:, 0, 0]}[family]
    z = 2 * torch.randn(9, dim, generator=generator, dtype=torch.float64)
    return z, simplex(seed, k), means, sigma


def test_literal_on_the_line():
    # Two unit-weight clusters at -1 and +1, total variance 1: P(+ | z) = 1 / (1 + exp(-2 z)).
    posterior = cluster_posterior([[0.0], [0.5]], [0.5, 0.5], [[-1.0], [1.0]], [0.75, 0.75], 0.25)
    np.testing.assert_allclose(posterior, [[0.5, 0.5], [0.2689414214, 0.7310585786]], rtol=1e-9)


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 5),
    dim=st.integers(1, 5),
    family=st.sampled_from(FAMILIES),
    noise=st.sampled_from(["scalar", "diagonal", "full"]),
)
@settings(max_examples=30, deadline=None)
def test_equals_scipy(seed, k, dim, family, noise):
    z, pi, means, sigma = mixture(seed, k, dim, family)
    matrix = spd(seed + 1, 1, dim)[0]
    sigma_p = {"scalar": matrix[0, 0], "diagonal": matrix.diag(), "full": matrix}[noise]
    expected = softmax(log_joint(z.numpy(), pi, means, sigma, sigma_p), axis=1)
    posterior = cluster_posterior(z, pi, means, sigma, sigma_p)
    np.testing.assert_allclose(posterior, expected, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(posterior.sum(1), 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "sklearn_name"), [("full", "full"), ("diagonal", "diag"), ("spherical", "spherical")]
)
def test_equals_scikit_learn(family, sklearn_name):
    z, pi, means, sigma = mixture(11, family=family)
    reference = GaussianMixture(3, covariance_type=sklearn_name)
    reference.weights_, reference.means_ = pi.numpy(), means.numpy()
    noisy = sigma.numpy() + (0.3 * np.eye(4) if family == "full" else 0.3)
    reference.covariances_ = noisy
    reference.precisions_cholesky_ = (
        np.stack([np.linalg.inv(np.linalg.cholesky(c)).T for c in noisy]) if family == "full" else 1 / np.sqrt(noisy)
    )
    posterior = cluster_posterior(z, pi, means, sigma, 0.3)
    np.testing.assert_allclose(posterior, reference.predict_proba(z.numpy()), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_change_nothing(family, monkeypatch):
    z, pi, means, sigma = mixture(1, family=family)
    whole = cluster_posterior(z, pi, means, sigma, 0.3)
    monkeypatch.setattr(membership, "_ELEMENTS_AT_ONCE", 24)  # two samples at a time, the last one alone
    torch.testing.assert_close(cluster_posterior(z, pi, means, sigma, 0.3), whole)


def test_images_are_flattened_row_major_and_an_empty_batch_is_fine():
    z, pi, means, sigma = mixture(2)
    flat = cluster_posterior(z, pi, means, sigma, 0.3)
    torch.testing.assert_close(cluster_posterior(z.reshape(9, 1, 2, 2), pi, means, sigma, 0.3), flat)
    assert cluster_posterior(z[:0], pi, means, sigma, 0.3).shape == (0, 3)
    torch.testing.assert_close(cluster_posterior(z[4:5], pi, means, sigma, 0.3), flat[4:5])


def test_order_of_components_is_carried_over():
    z, pi, means, sigma = mixture(3)
    order = [2, 0, 1]
    posterior = cluster_posterior(z, pi[order], means[order], sigma[order], 0.3)
    torch.testing.assert_close(posterior, cluster_posterior(z, pi, means, sigma, 0.3)[:, order])


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_zero_is_the_same_as_absent(family):
    z, pi, means, sigma = mixture(4, family=family)
    lost = torch.full((1, *means.shape[1:]), torch.nan).double()
    weights = torch.cat([torch.zeros(1).double(), pi]).requires_grad_()
    centres = torch.cat([lost, means]).requires_grad_()
    spreads = torch.cat([torch.full_like(sigma[:1], torch.nan), sigma]).requires_grad_()
    posterior = cluster_posterior(z, weights, centres, spreads, 0.3)
    assert (posterior[:, 0] == 0).all()
    torch.testing.assert_close(posterior[:, 1:], cluster_posterior(z, pi, means, sigma, 0.3))
    posterior.square().sum().backward()
    for leaf in (weights, centres, spreads):
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[0] == 0).all()


def test_far_features_still_have_a_posterior():
    # Densities of exp(-1e10) and less underflow; the nearer cluster still wins, in float32 too.
    far = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    posterior = cluster_posterior(far, [0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.0, 0.0], 0.01)
    assert posterior.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_identical_components_return_the_weights():
    z, pi, means, sigma = mixture(5)
    posterior = cluster_posterior(z, pi, means[:1].expand(3, 4), sigma[:1].expand(3, 4, 4), 0.3)
    torch.testing.assert_close(posterior, pi.expand(9, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
def test_gradcheck(family, noise):
    z, pi, means, sigma = mixture(6, k=2, dim=3, family=family)
    matrix = spd(7, 1, 3)[0]
    sigma_p = {"scalar": matrix[0, 0], "diagonal": matrix.diag(), "full": matrix}[noise]
    inputs = [t.clone().requires_grad_() for t in (z[:3], pi, means, sigma, sigma_p)]
    assert torch.autograd.gradcheck(cluster_posterior, inputs)
    assignments = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda z, *rest: own_cluster_posterior(z, assignments, *rest), inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_follows_float64(family):
    z, pi, means, sigma = mixture(8, family=family)
    wide = cluster_posterior(z, pi, means, sigma, 0.3)
    narrow = cluster_posterior(z.float(), pi.float(), means.float(), sigma.float(), 0.3)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-7)


def test_own_cluster_posterior_is_the_mean_of_the_assigned_column():
    posterior = own_cluster_posterior([[0.0], [0.5]], [0, 1], [0.5, 0.5], [[-1.0], [1.0]], [0.75, 0.75], 0.25)
    assert posterior.item() == pytest.approx((0.5 + 0.7310585786) / 2, rel=1e-9)


def test_own_cluster_posterior_goes_to_one_in_the_ideal_limit():
    # Section 3.4: k = n clusters, Sigma_i << Sigma_p -> 0, means 1 apart.
    means, pi = np.eye(3), [0.2, 0.3, 0.5]
    values = []
    for noise in (1.0, 0.1, 1e-3):
        z, own = sample_mixture(0, 4000, pi, means, [noise * 1e-6] * 3, noise)
        values.append(own_cluster_posterior(z, own, pi, means, [noise * 1e-6] * 3, noise).item())
    assert 0.38 < values[0] < values[1] < values[2]  # 0.38 = sum of pi^2, where z tells nothing
    assert values[2] == pytest.approx(1.0, abs=1e-6)


def test_own_cluster_posterior_is_the_collision_probability():
    # For z drawn from the model, E[P(j | z)] at the true j equals E[sum_i P(i | z)^2].
    pi, means, sigma = np.array([0.3, 0.7]), np.array([[0.0, 0.0], [1.0, 1.0]]), spd(9, 2, 2).numpy()
    z, own = sample_mixture(1, 20_000, pi, means, sigma, 0.2)
    squares = np.square(softmax(log_joint(z, pi, means, sigma, as_matrix(0.2, 2)), axis=1)).sum(1)
    assert own_cluster_posterior(z, own, pi, means, sigma, 0.2).item() == pytest.approx(squares.mean(), abs=0.01)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"z": torch.ones(2, 3)},
            FeatureError,
            r"z has shape \(2, 3\), the means have 4 dimensions; pass a batch",
        ),
        ({"z": torch.ones(4)}, FeatureError, "pass a batch"),
        ({"z": torch.full((2, 4), torch.nan)}, FeatureError, "z holds NaN"),
        (
            {"means": torch.ones(2, 4)},
            FeatureError,
            r"weights \(3,\) and means \(2, 4\) do not match; pass weights",
        ),
        ({"means": torch.full((3, 4), torch.inf)}, FeatureError, "means holds NaN or infinite"),
        ({"covariances": torch.ones(2)}, FeatureError, r"pass weights \(k,\) with covariances"),
        ({"covariances": torch.ones(3, 5)}, ConfigError, "dim=4 contradicts"),
        ({"noise_covariance": 0.0}, ConfigError, "variance of 0"),
        ({"noise_covariance": torch.ones(3)}, ConfigError, "for features of 4 dimensions"),
    ],
)
def test_mistakes_are_explained(changes, error, match):
    z, pi, means, sigma = mixture(10)
    arguments = {"z": z, "weights": pi, "means": means, "covariances": sigma, "noise_covariance": 0.3}
    with pytest.raises(error, match=match):
        cluster_posterior(**(arguments | changes))


@pytest.mark.parametrize(
    ("assignments", "match"),
    [
        ([0] * 8, r"shape \(8,\) and dtype torch.int64; pass the 9 integer cluster indices"),
        ([0.0] * 9, "pass the 9 integer"),
        ([True] * 9, "pass the 9 integer"),
        ([0] * 8 + [3], r"outside 0\.\.2; pass indices of the given components"),
        ([0] * 8 + [-1], r"outside 0\.\.2"),
    ],
)
def test_wrong_assignments_are_explained(assignments, match):
    z, *rest = mixture(10)
    with pytest.raises(FeatureError, match=match):
        own_cluster_posterior(z, assignments, *rest, 0.3)
    with pytest.raises(FeatureError, match="nothing to average; pass at least one"):
        own_cluster_posterior(z[:0], [], *rest, 0.3)
