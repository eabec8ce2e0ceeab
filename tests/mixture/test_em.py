import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Oracle

from sfumato.errors import ConfigError, FeatureError, NotFittedError
from sfumato.mixture import GaussianMixture, Parameters


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
    rows = torch.randperm(len(features), generator=seeded(seed))[:k]
    whole = torch.cov(features.double().T, correction=0) + 1e-3 * torch.eye(features.shape[1])
    weights = torch.arange(1, k + 1, dtype=torch.float64)
    return Parameters(weights / weights.sum(), features[rows].double(), whole.repeat(k, 1, 1))


def of_clusters(features, assignment, k):
    """The moments of a partition, to start from."""
    parts = [features[assignment == j].double() for j in range(k)]
    shares = torch.tensor([len(part) / len(features) for part in parts], dtype=torch.float64)
    spread = torch.stack([torch.cov(part.T, correction=0) for part in parts])
    spread.diagonal(dim1=1, dim2=2).add_(1e-6)
    return Parameters(shares, torch.stack([part.mean(0) for part in parts]), spread)


def fitted_parameters(mixture):
    return Parameters(mixture.weights_, mixture.means_, mixture.covariances_)


def their_fit(features, init, max_iter, tol=1e-3):
    oracle = Oracle(
        len(init.weights),
        tol=tol,
        max_iter=max_iter,
        weights_init=init.weights.numpy(),
        means_init=init.means.numpy(),
        precisions_init=torch.linalg.inv(init.covariances).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return oracle.fit(features.double().numpy())


@pytest.mark.parametrize("iterations", [1, 7, 100])
def test_the_same_iterates_as_scikit_learn(iterations):
    features = sample()
    init = start(features, 3)
    theirs = their_fit(features, init, iterations)
    ours = GaussianMixture(3, max_iter=iterations).fit(features, init=init)
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    assert ours.lower_bounds_[-1] == pytest.approx(theirs.lower_bound_, abs=1e-9)
    np.testing.assert_allclose(ours.weights_, theirs.weights_, atol=1e-8)
    np.testing.assert_allclose(ours.means_, theirs.means_, atol=1e-7)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_, atol=1e-7)
    x = features.numpy()
    np.testing.assert_allclose(ours.score_samples(features), theirs.score_samples(x), atol=1e-6)


def test_float32_in_high_dimension_matches_scikit_learn_in_float64():
    features = torch.sigmoid(sample(n=2000, dim=96, k=4, gap=0.6)).float()
    init = start(features, 4)
    theirs = their_fit(features, init, 100)
    ours = GaussianMixture(4).fit(features, init=init)
    assert ours.n_iter_ == pytest.approx(theirs.n_iter_, abs=1)
    assert ours.lower_bounds_[-1] == pytest.approx(theirs.lower_bound_, abs=1e-3)
    assert float(ours.score_samples(features).mean()) == pytest.approx(
        theirs.score(features.double().numpy()), abs=1e-3
    )


def test_float32_far_from_the_origin_and_with_far_tight_clusters():
    """Where sums of z^2 / v cancel 7 digits, the passes go over to float64."""
    generator = seeded(3)
    truth = torch.arange(600) % 3
    means = 50 * torch.randn(3, 20, generator=generator)
    features = (100 + means[truth] + 0.01 * torch.randn(600, 20, generator=generator)).float()
    init = of_clusters(features, truth, 3)
    ours = GaussianMixture(3).fit(features, init=init)
    theirs = GaussianMixture(3).fit(features.double(), init=init)
    assert ours.lower_bounds_[-1] == pytest.approx(theirs.lower_bounds_[-1], abs=1e-3)
    torch.testing.assert_close(ours.covariances_, theirs.covariances_, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_likelihood_never_falls(dtype):
    for seed in range(4):
        features = sample(n=400, seed=seed, dtype=dtype)
        fitted = GaussianMixture(3, tol=0.0, max_iter=40, reg_covar=0.0).fit(features, init=start(features, 3, seed))
        slack = 1e-10 if dtype == torch.float64 else 1e-5
        steps = np.diff(fitted.lower_bounds_)
        assert steps.min() > -slack
        assert steps[:3].sum() > 0.01


def test_recovers_known_parameters():
    generator = seeded(0)
    weights = torch.tensor([0.2, 0.5, 0.3])
    means = torch.tensor([[-4.0, 0.0], [0.0, 3.0], [5.0, 1.0]])
    variances = torch.tensor([[0.5, 0.5], [1.0, 1.0], [0.25, 0.25]])
    truth = torch.multinomial(weights, 30_000, replacement=True, generator=generator)
    features = means[truth] + variances[truth].sqrt() * torch.randn(30_000, 2, generator=generator)
    fitted = GaussianMixture(3, tol=1e-6).fit(features, generator=generator)
    assert fitted.converged_
    order = fitted.means_[:, 0].argsort()
    torch.testing.assert_close(fitted.weights_[order].float(), weights, atol=0.01, rtol=0)
    torch.testing.assert_close(fitted.means_[order].float(), means, atol=0.05, rtol=0)
    torch.testing.assert_close(fitted.covariances_[order].float(), variances.diag_embed(), atol=0.04, rtol=0)


def test_one_component_is_the_gaussian_of_the_sample():
    features = sample()
    fitted = GaussianMixture(1, reg_covar=0.0).fit(features)
    x = features.numpy()
    np.testing.assert_allclose(fitted.means_[0], x.mean(0), atol=1e-12)
    np.testing.assert_allclose(fitted.covariances_[0], np.cov(x.T, ddof=0), atol=1e-12)
    density = multivariate_normal(x.mean(0), np.cov(x.T, ddof=0))
    np.testing.assert_allclose(fitted.score_samples(features), density.logpdf(x), atol=1e-9)
    # The mean log likelihood of a fitted Gaussian is minus its entropy, -1/2 log |2 pi e Sigma|.
    entropy = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * np.cov(x.T, ddof=0))[1]
    assert float(fitted.score_samples(features).mean()) == pytest.approx(-entropy, abs=1e-9)


def test_order_and_copies_of_the_samples_do_not_matter_given_a_start():
    features = sample()
    init = start(features, 3)
    order = torch.randperm(len(features), generator=seeded())
    first, shuffled, doubled = (
        GaussianMixture(3, max_iter=15).fit(x, init=init) for x in (features, features[order], features.repeat(2, 1))
    )
    for other in (shuffled, doubled):
        assert other.lower_bounds_ == pytest.approx(first.lower_bounds_, abs=1e-10)
        torch.testing.assert_close(other.covariances_, first.covariances_, atol=1e-8, rtol=1e-8)


def test_components_in_another_order_give_the_same_mixture():
    features = sample()
    init = start(features, 3)
    back = Parameters(*(part.flip(0) for part in init))
    one, other = (GaussianMixture(3, max_iter=10).fit(features, init=i) for i in (init, back))
    torch.testing.assert_close(one.means_, other.means_.flip(0))
    torch.testing.assert_close(one.covariances_, other.covariances_.flip(0))


def test_a_warm_start_goes_on_where_the_first_fit_stopped():
    features = sample()
    init = start(features, 3)
    whole = GaussianMixture(3, tol=0.0, max_iter=9).fit(features, init=init)
    half = GaussianMixture(3, tol=0.0, max_iter=4).fit(features, init=init)
    rest = GaussianMixture(3, tol=0.0, max_iter=5).fit(features, init=fitted_parameters(half))
    assert half.lower_bounds_ + rest.lower_bounds_ == pytest.approx(whole.lower_bounds_, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_samples_than_dimensions(dtype):
    features = sample(n=30, dim=64, k=2, dtype=dtype)
    fitted = GaussianMixture(2).fit(features)
    assert math.isfinite(fitted.lower_bounds_[-1])
    assert float(torch.linalg.eigvalsh(fitted.covariances_).min()) == pytest.approx(1e-6, rel=1e-2)


def test_fewer_samples_than_components_copies_and_one_sample():
    for features in (sample(n=3), sample(n=4).repeat(20, 1), sample(n=1)):
        fitted = GaussianMixture(6).fit(features)
        assert float(fitted.weights_.sum()) == pytest.approx(1.0)
        assert all(torch.isfinite(part).all() for part in fitted_parameters(fitted))
        assert torch.isfinite(fitted.score_samples(features)).all()


def test_an_empty_component_is_restarted_where_the_mixture_explains_least():
    generator = seeded(0)
    features = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    features[:40] += 30.0
    init = Parameters(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[0.0] * 3, [-1e4] * 3]).double(),
        torch.eye(3).double().repeat(2, 1, 1),
    )
    fitted = GaussianMixture(2).fit(features, init=init)
    assert sorted(fitted.weights_.tolist()) == pytest.approx([0.1, 0.9], abs=1e-6)
    assert sorted(fitted.means_[:, 0].tolist()) == pytest.approx([0.0, 30.0], abs=0.5)


def test_a_component_collapsed_on_one_point_is_restarted():
    features = torch.cat([torch.ones(50, 3), torch.randn(300, 3, generator=seeded()) - 20]).double()
    clusters = of_clusters(features, (torch.arange(350) < 50).long(), 2)
    init = fitted_parameters(GaussianMixture(2).fit(features, init=clusters))
    assert float(init.covariances[1].max()) == pytest.approx(1e-6, rel=1e-4)
    fitted = GaussianMixture(2, reg_covar=0.0, max_iter=1).fit(features, init=init)
    assert float(fitted.covariances_[1].max()) > 0.5  # the average covariance, 6/7 of about 1
    with pytest.raises(FeatureError, match="component 1 is not positive definite; raise reg_covar"):
        GaussianMixture(2, reg_covar=0.0).fit(features, init=fitted_parameters(fitted))


def test_a_start_with_an_empty_cluster_or_rounded_weights():
    features = sample()
    one = of_clusters(features, torch.zeros(900, dtype=torch.int64), 1)
    init = Parameters(torch.tensor([1.0, 0.0]).double(), one.means.repeat(2, 1), torch.cat([one.covariances] * 2))
    fitted = GaussianMixture(2, reg_covar=0.0).fit(features, init=init)
    assert float(fitted.weights_.min()) > 0.01
    init = start(features, 3)
    rounded = init._replace(weights=init.weights * 1.0005)
    one, other = (GaussianMixture(3, max_iter=2).fit(features, init=i) for i in (init, rounded))
    assert other.lower_bounds_ == pytest.approx(one.lower_bounds_, abs=1e-12)


def test_a_component_that_stays_empty_keeps_its_mean_and_covariance():
    """One sample, three components: the second is restarted on the sample, for the third there is none left."""
    init = start(torch.randn(9, 2, generator=seeded(), dtype=torch.float64), 3)
    weights, means = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[1.0, 2.0], [7.0, 7.0], [9.0, 8.0]])
    init = Parameters(weights.double(), means.double(), init.covariances)
    fitted = GaussianMixture(3, max_iter=20).fit(torch.tensor([[1.0, 2.0]]).double(), init=init)
    assert fitted.weights_[2] == 0
    torch.testing.assert_close(fitted.means_, torch.tensor([[1.0, 2.0], [1.0, 2.0], [9.0, 8.0]]).double())
    assert torch.equal(fitted.covariances_[2], init.covariances[2])


def test_start_from_an_assignment_takes_the_clusters_moments():
    features = sample()
    assignment = (features[:, 0] > features[:, 0].median()).long()
    init = of_clusters(features, assignment, 2)
    fitted = GaussianMixture(2, max_iter=1, reg_covar=0.0).fit(features, init=init)
    parts = [features[assignment == j].numpy() for j in range(2)]
    joint = [
        math.log(len(p) / 900) + multivariate_normal(p.mean(0), np.cov(p.T, ddof=0)).logpdf(features.numpy())
        for p in parts
    ]
    assert fitted.lower_bounds_[-1] == pytest.approx(np.logaddexp(*joint).mean(), abs=1e-5)


def test_same_seed_same_result_and_the_global_state_is_left_alone():
    features = sample()
    state = torch.random.get_rng_state()
    first, second = (GaussianMixture(3).fit(features, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first.means_, second.means_)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_errors_say_what_to_do():
    features = sample(n=50)
    with pytest.raises(NotFittedError, match="call fit"):
        GaussianMixture(2).score_samples(features)
    with pytest.raises(ConfigError, match=r"reg_covar \(-1\) must not be negative"):
        GaussianMixture(2, reg_covar=-1)
    with pytest.raises(ConfigError, match="max_iter is 0"):
        GaussianMixture(2, max_iter=0)
    with pytest.raises(FeatureError, match="raise reg_covar, or fit fewer components"):
        GaussianMixture(1, reg_covar=0.0).fit(features[:3])
    with pytest.raises(FeatureError, match=r"a mixture of 2 components in 5 dimensions starts from \(2,\)"):
        GaussianMixture(2).fit(features, init=start(features, 3))
    init = start(features, 2)
    with pytest.raises(FeatureError, match="not be negative and sum to 1"):
        GaussianMixture(2).fit(features, init=init._replace(weights=init.weights * 2))
    with pytest.raises(FeatureError, match="NaN or infinite"):
        GaussianMixture(1).fit(features.log())
