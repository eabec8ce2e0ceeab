"""Algorithm 1 as printed: EM over all classes to noisy features, then Eq. 5 to 7 batch by batch."""

import warnings

import numpy as np
import pytest
import torch
from reference import SlowCEM
from sklearn.mixture import GaussianMixture as Oracle

import sfumato
from sfumato.errors import ConfigError

CLASSES, DIM, SIGMA = 3, 6, 0.2


def blobs(count, seed=0):
    """Three overlapping classes; the means of one seed are those of all, so that a warm start has a way to go."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, DIM, generator=generator)
    mix = 0.15 * torch.randn(CLASSES, DIM, DIM, generator=generator)
    labels = torch.arange(count) % CLASSES
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + torch.einsum("nd,nde->ne", drawn, mix[labels]), labels


def with_noise(features, seed=9):
    return features + SIGMA * torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))


def printed(**options):
    settings = {"clusters_per_class": 2, "update": "running", "scaling": "literal"} | options
    return sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, fit="em", **settings)


def floored(covariance):
    values, vectors = np.linalg.eigh(covariance - SIGMA**2 * np.eye(DIM))
    return (vectors * values.clip(min=0)) @ vectors.T


def test_the_mixture_is_scikit_learns_with_the_noise_subtracted():
    """From the same start: the mixture of the refresh before."""
    cem, noisy = printed(), with_noise(blobs(900, 1)[0])
    cem.refresh(with_noise(blobs(900)[0]), noisy=True)
    widened = cem.covariances.double().numpy() + SIGMA**2 * np.eye(DIM)
    weights = cem.weights.double().numpy()
    oracle = Oracle(
        2 * CLASSES,
        max_iter=20,
        weights_init=weights / weights.sum(),
        means_init=cem.means.double().numpy(),
        precisions_init=np.linalg.inv(widened),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle.fit(noisy.double().numpy())
    cem.refresh(noisy, noisy=True)
    np.testing.assert_allclose(cem.weights, oracle.weights_, atol=1e-4)
    np.testing.assert_allclose(cem.means, oracle.means_, atol=1e-3)
    np.testing.assert_allclose(cem.covariances, [floored(one) for one in oracle.covariances_], atol=1e-3)
    assert min(np.linalg.eigvalsh(one)[0] for one in oracle.covariances_) < SIGMA**2  # so the floor has been met


def test_the_noise_is_drawn_for_every_fit_and_subtracted_again():
    """One Gaussian: its covariance without noise, up to what 4,000 draws of the noise leave."""
    features, _ = blobs(4000)
    cem = sfumato.CEM(num_classes=1, noise_std=0.5, fit="em", clusters_per_class=1)
    cem.refresh(features)
    clean = np.cov(features.double().numpy().T, ddof=0)
    first = cem.covariances[0].double().numpy()
    assert 1e-3 < np.abs(first - clean).max() < 0.04  # with the noise left in it would be 0.25 on the diagonal
    cem.refresh(features)
    assert np.abs(cem.covariances[0].double().numpy() - first).max() > 1e-3


def test_batches_equal_a_float64_loop_over_noisy_features():
    """Line 9 to 14: nearest mean of all, Eq. 5, Eq. 6, Eq. 7 and its gradient, for z_hat plus the noise of the step."""
    sizes = (1, 40, 40, 19)
    features, labels = blobs(sum(sizes))
    cem = printed()
    cem.refresh(features)
    loop = SlowCEM(features.double().numpy(), None, cem.means.double().numpy(), 2, SIGMA, "full")
    loop.weights, loop.means = list(cem.weights.double().numpy()), list(cem.means.double().numpy())
    loop.covariances = list(cem.covariances.double().numpy())
    for step, z_hat in enumerate(features.split(sizes)):
        torch.manual_seed(step)
        rows = (z_hat + SIGMA * torch.randn_like(z_hat)).double().numpy()
        loop.carry(rows, None)
        z_hat = z_hat.clone().requires_grad_()
        torch.manual_seed(step)
        loss = cem(z_hat, labels[: len(z_hat)])  # labels are not looked at
        loss.backward()
        assert float(loss.detach()) == pytest.approx(loop.information(), rel=1e-5)
        np.testing.assert_allclose(z_hat.grad, loop.gradient(rows, None) / len(features), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(cem.weights, loop.weights, rtol=1e-5)
    np.testing.assert_allclose(cem.covariances, np.stack(loop.covariances), rtol=1e-3, atol=1e-6)


def test_labels_do_not_matter():
    features, labels = blobs(300)
    one, other = printed(), printed()
    one.refresh(features, labels)
    other.refresh(features)
    assert torch.equal(one.means, other.means)


@pytest.mark.parametrize("form", ["diagonal", "spherical"])
def test_other_families_are_refused(form):
    with pytest.raises(ConfigError, match="Algorithm 1 as printed; give update='running' and covariance='full'"):
        printed(covariance=form)


def test_a_restored_one_goes_on_with_the_same_mixture():
    features, _ = blobs(300)
    cem, other = printed(), printed()
    cem.refresh(features)
    other.load_state_dict(cem.state_dict())
    for one in (cem, other):
        one.refresh(features)
    assert torch.equal(cem.covariances, other.covariances)


def test_wrong_settings():
    with pytest.raises(ConfigError, match="fit is 'gmm'; choose one of kmeans, em"):
        sfumato.CEM(num_classes=2, noise_std=0.1, fit="gmm")
    with pytest.raises(ConfigError, match="CEM.as_published"):
        sfumato.CEM(num_classes=2, noise_std=0.1, fit="em", scaling="as_published", covariance="spherical")
