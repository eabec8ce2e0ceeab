import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Oracle

from sfumato.errors import FeatureError
from sfumato.mixture import Parameters, expectation_maximization


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(n=900, dim=5, k=3, gap=2.0, seed=0, dtype=torch.float64):
    """Correlated clusters of different shapes that overlap a little."""
    generator = seeded(seed)
    truth = torch.randint(0, k, (n,), generator=generator)
    means = gap * torch.randn(k, dim, generator=generator, dtype=torch.float64)
    roots = torch.randn(k, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return (means[truth] + torch.einsum("nij,nj->ni", roots[truth] + 0.3 * torch.eye(dim), noise)).to(dtype)


def start(features, k, seed=1):
    """A poor start: random samples as means, the covariance of everything."""
    rows = torch.randint(len(features), (k,), generator=seeded(seed))
    centred = features.double() - features.double().mean(0)
    whole = centred.T @ centred / len(features) + 1e-3 * torch.eye(features.shape[1])
    weights = torch.arange(1, k + 1, dtype=torch.float64)
    return Parameters(weights / weights.sum(), features[rows].double(), whole.repeat(k, 1, 1))


def oracle(init, max_iter=1, tol=1e-3):
    return Oracle(
        len(init.weights),
        tol=tol,
        max_iter=max_iter,
        weights_init=init.weights.numpy(),
        means_init=init.means.numpy(),
        precisions_init=torch.linalg.inv(init.covariances).numpy(),
    )


def their_fit(features, init, max_iter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return oracle(init, max_iter).fit(features.double().numpy())


def log_likelihood(features, mixture):
    """Of each sample, by scipy."""
    each = [
        np.log(float(weight)) + multivariate_normal(mean, covariance).logpdf(features.double().numpy())
        for weight, mean, covariance in zip(*(part.numpy() for part in mixture), strict=True)
        if weight > 0
    ]
    return np.logaddexp.reduce(each, axis=0)


@pytest.mark.parametrize("iterations", [1, 7, 100])
def test_the_same_iterates_as_scikit_learn(iterations):
    features = sample()
    init = start(features, 3)
    theirs = their_fit(features, init, iterations)
    ours = expectation_maximization(features, init, iterations=iterations)
    np.testing.assert_allclose(ours.weights, theirs.weights_, atol=1e-8)
    np.testing.assert_allclose(ours.means, theirs.means_, atol=1e-7)
    np.testing.assert_allclose(ours.covariances, theirs.covariances_, atol=1e-7)


def test_float32_in_high_dimension_matches_scikit_learn_in_float64():
    features = torch.sigmoid(sample(n=2000, dim=96, k=4, gap=0.6)).float()
    init = start(features, 4)
    ours = expectation_maximization(features, init, iterations=100)
    theirs = their_fit(features, init, 100).score(features.double().numpy())
    assert log_likelihood(features, ours).mean() == pytest.approx(theirs, abs=1e-3)


def test_float32_far_from_the_origin_and_with_tight_clusters():
    """Where sums of z^2 / v would cancel 7 digits."""
    generator = seeded(3)
    truth = torch.arange(600) % 3
    means = 50 * torch.randn(3, 20, generator=generator)
    features = (100 + means[truth] + 0.01 * torch.randn(600, 20, generator=generator)).float()
    init = Parameters(torch.full((3,), 1 / 3), means + 100, 1e-4 * torch.eye(20).repeat(3, 1, 1))
    fitted = expectation_maximization(features, init)
    for j in range(3):
        exact = np.cov(features[truth == j].double().numpy().T, ddof=0) + 1e-6 * np.eye(20)
        np.testing.assert_allclose(fitted.covariances[j], exact, rtol=1e-6, atol=1e-12)


def test_likelihood_never_falls():
    for seed in range(4):
        features = sample(n=400, seed=seed)
        mixtures = [start(features, 3, seed)]
        for _ in range(20):
            mixtures.append(expectation_maximization(features, mixtures[-1], iterations=1))
        steps = np.diff([log_likelihood(features, one).mean() for one in mixtures])
        assert steps.min() > -1e-5  # what 1e-6 on every variance may take
        assert steps[:3].sum() > 0.01


def test_recovers_known_parameters():
    generator = seeded(0)
    weights = torch.tensor([0.2, 0.5, 0.3])
    means = torch.tensor([[-4.0, 0.0], [0.0, 3.0], [5.0, 1.0]])
    variances = torch.tensor([[0.5, 0.5], [1.0, 1.0], [0.25, 0.25]])
    truth = torch.multinomial(weights, 30_000, replacement=True, generator=generator)
    features = means[truth] + variances[truth].sqrt() * torch.randn(30_000, 2, generator=generator)
    init = Parameters(torch.full((3,), 1 / 3), means + 0.5, torch.eye(2).repeat(3, 1, 1))
    fitted = expectation_maximization(features, init, iterations=200, tolerance=1e-6)
    torch.testing.assert_close(fitted.weights.float(), weights, atol=0.01, rtol=0)
    torch.testing.assert_close(fitted.means.float(), means, atol=0.05, rtol=0)
    torch.testing.assert_close(fitted.covariances.float(), variances.diag_embed(), atol=0.04, rtol=0)


def test_one_component_is_the_gaussian_of_the_sample():
    features = sample()
    x = features.numpy()
    fitted = expectation_maximization(features, start(features, 1))
    np.testing.assert_allclose(fitted.means[0], x.mean(0), atol=1e-12)
    np.testing.assert_allclose(fitted.covariances[0], np.cov(x.T, ddof=0) + 1e-6 * np.eye(5), atol=1e-12)


def test_the_order_and_copies_of_samples_and_the_order_of_components_do_not_matter():
    features = sample()
    init = start(features, 3)
    order = torch.randperm(len(features), generator=seeded())
    first = expectation_maximization(features, init, iterations=15)
    for other in (features[order], features.repeat(2, 1)):
        found = expectation_maximization(other, init, iterations=15)
        torch.testing.assert_close(found.covariances, first.covariances, atol=1e-8, rtol=1e-8)
    back = expectation_maximization(features, Parameters(*(part.flip(0) for part in init)), iterations=15)
    torch.testing.assert_close(back.means.flip(0), first.means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_samples_than_dimensions(dtype):
    features = sample(n=30, dim=64, k=2, dtype=dtype)
    fitted = expectation_maximization(features, start(features, 2))
    assert np.isfinite(log_likelihood(features, fitted)).all()
    assert float(torch.linalg.eigvalsh(fitted.covariances).min()) == pytest.approx(1e-6, rel=1e-2)


def test_fewer_samples_than_components_copies_and_one_sample():
    for features in (sample(n=3), sample(n=4).repeat(20, 1), sample(n=1)):
        fitted = expectation_maximization(features, start(features, 6))
        assert float(fitted.weights.sum()) == pytest.approx(1.0)
        assert all(torch.isfinite(part).all() for part in fitted)


def test_a_component_for_which_no_sample_answers_keeps_its_mean_and_covariance():
    features = sample(n=50)
    init = start(features, 3)
    init.weights[:] = torch.tensor([0.5, 0.5, 0.0])
    fitted = expectation_maximization(features, init)
    assert fitted.weights[2] == 0
    assert torch.equal(fitted.means[2], init.means[2])
    assert torch.equal(fitted.covariances[2], init.covariances[2])


def test_errors_say_what_to_do():
    features = sample(n=50)
    flat = start(features, 2)._replace(covariances=torch.zeros(2, 5, 5))
    with pytest.raises(FeatureError, match="component 0 is not positive definite; fit fewer components, or bound"):
        expectation_maximization(features, flat)
    with pytest.raises(FeatureError, match="NaN or infinite"):
        expectation_maximization(features.log(), start(features, 2))
    with pytest.raises(FeatureError, match="5 dimensions, but the clusters 4"):
        expectation_maximization(features, Parameters(flat.weights, flat.means[:, :4], flat.covariances[:, :4, :4]))
