import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import batch_covariances, moments, subtract_noise, update_covariances, update_weights

FAMILIES = ("full", "diagonal", "spherical")


def batch_loops(features, assignment, means, covariance):
    z, mu = features.double().numpy(), means.double().numpy()
    result = []
    for j in range(len(mu)):
        total, count = np.zeros((z.shape[1], z.shape[1])), 0
        for row, cluster in zip(z, assignment.tolist(), strict=True):
            if cluster == j:
                total += np.outer(row - mu[j], row - mu[j])
                count += 1
        full = total / max(count, 1)
        result.append({"full": full, "diagonal": np.diag(full), "spherical": np.trace(full) / z.shape[1]}[covariance])
    return torch.tensor(np.array(result))


@pytest.mark.parametrize("covariance", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 30), dim=st.integers(1, 6), k=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_batch_covariances_match_plain_loops(covariance, n, dim, k, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    means = torch.randn(k, dim, generator=generator, dtype=torch.float64)
    assignment = torch.randint(0, k, (n,), generator=generator)
    found = batch_covariances(features, assignment, means, covariance)
    expected = batch_loops(features, assignment, means, covariance)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    narrow = batch_covariances(features.float(), assignment, means.float(), covariance)
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_batch_covariances_are_differentiable_even_for_one_sample(covariance):
    features = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    means = torch.randn(4, 3, dtype=torch.float64)
    assignment = torch.tensor([0, 0, 2, 3, 3])
    assert torch.autograd.gradcheck(lambda z: batch_covariances(z, assignment, means, covariance), features)
    batch_covariances(features, assignment, means, covariance).sum().backward()
    assert float(features.grad[2].abs().max()) > 0


def test_equation_5_by_hand():
    # N = 100, batch of 10: 0.5 * 90 + 2 = 47; 0.3 * 90 + 8 = 35; 0.2 * 90 + 0 = 18.
    found = update_weights(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([2, 8, 0]), 100, 10)
    assert found.tolist() == pytest.approx([0.47, 0.35, 0.18])
    # A batch that is the whole data set replaces the weights.
    whole = update_weights(torch.tensor([0.5, 0.5]), torch.tensor([1, 3]), 4, 4)
    assert whole.tolist() == [0.25, 0.75]


def test_equation_6_by_hand():
    # c = n / (pi N) = 2 / (0.2 * 100) = 0.1, and 0 for the cluster without samples.
    stored, batch = torch.tensor([1.0, 7.0]), torch.tensor([3.0, 0.0])
    found = update_covariances(stored, batch, torch.tensor([2, 0]), torch.tensor([0.2, 0.8]), 100)
    assert found.tolist() == pytest.approx([1.2, 7.0])
    assert float(found[1]) == 7.0


@pytest.mark.parametrize("covariance", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_both_updates_match_plain_loops(covariance, seed):
    generator = torch.Generator().manual_seed(seed)
    n, k, dim, total = 9, 4, 3, 37
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    means = torch.randn(k, dim, generator=generator, dtype=torch.float64)
    assignment = torch.randint(0, k, (n,), generator=generator)
    weights = torch.rand(k, generator=generator, dtype=torch.float64)
    weights[1] = 0.0  # a cluster that was empty, perhaps until this batch
    weights /= weights.sum()
    shape = {"full": (k, dim, dim), "diagonal": (k, dim), "spherical": (k,)}[covariance]
    stored = torch.rand(shape, generator=generator, dtype=torch.float64)
    counts = torch.bincount(assignment, minlength=k)
    new_weights = update_weights(weights, counts, total, n)
    scatter = batch_covariances(features, assignment, means, covariance)
    found = update_covariances(stored, scatter, counts, new_weights, total)
    assert torch.isfinite(found).all()
    assert float(new_weights.sum()) == pytest.approx(1.0)
    delta = batch_loops(features, assignment, means, covariance).numpy()
    for j in range(k):
        n_j = assignment.tolist().count(j)
        pi = (float(weights[j]) * (total - n) + n_j) / total
        c = n_j / (pi * total) if n_j else 0.0
        assert float(new_weights[j]) == pytest.approx(pi)
        assert 0 <= c <= 1 + 1e-12
        np.testing.assert_allclose(found[j], (1 - c) * stored[j].numpy() + c * delta[j], rtol=1e-12, atol=1e-15)
        if n_j == 0:
            assert torch.equal(found[j], stored[j])


def test_weights_from_before_the_update_cannot_overshoot():
    found = update_covariances(torch.tensor([5.0]), torch.tensor([1.0]), torch.tensor([10]), torch.tensor([0.01]), 100)
    assert found.tolist() == [1.0]


def test_an_epoch_of_batches_approaches_the_moments_of_the_set():
    """With frozen features the carried moments stay those of the whole set, up to batch noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    assignment = (features[:, 0] > 0.5).long()
    exact = moments(features, assignment, 2, "full")
    weights, covariances = torch.tensor([0.5, 0.5], dtype=torch.float64), 4 * exact.covariances
    for _ in range(6):
        for rows in torch.randperm(4000, generator=generator).split(100):
            counts = torch.bincount(assignment[rows], minlength=2)
            weights = update_weights(weights, counts, 4000, 100)
            scatter = batch_covariances(features[rows], assignment[rows], exact.means, "full")
            covariances = update_covariances(covariances, scatter, counts, weights, 4000)
    torch.testing.assert_close(weights, exact.counts / 4000.0, atol=0.02, rtol=0, check_dtype=False)
    torch.testing.assert_close(covariances, exact.covariances, atol=0.08, rtol=0)


def test_subtract_noise_by_hand():
    assert subtract_noise(torch.tensor([3.0, 0.5]), 1.0).tolist() == [2.0, 0.0]
    assert subtract_noise(torch.tensor([[3.0, 0.5]]), 1.0).tolist() == [[2.0, 0.0]]
    # Eigenvalues 3 along (1, 1) and 0.5 along (1, -1); 2 and 0 remain: 2 * 1/2 [[1, 1], [1, 1]].
    matrix = torch.tensor([[[1.75, 1.25], [1.25, 1.75]]])
    torch.testing.assert_close(subtract_noise(matrix, 1.0), torch.ones(1, 2, 2))
    torch.testing.assert_close(subtract_noise(matrix, 0.25), matrix - 0.25 * torch.eye(2))


@settings(max_examples=15, deadline=None)
@given(dim=st.integers(1, 6), noise=st.floats(0, 3), seed=st.integers(0, 2**31))
def test_subtract_noise_is_the_nearest_positive_matrix(dim, noise, seed):
    root = torch.randn(2, dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    covariances = root @ root.mT
    found = subtract_noise(covariances, noise)
    for before, after in zip(covariances.numpy(), found.numpy(), strict=True):
        values, vectors = np.linalg.eigh(before - noise * np.eye(dim))
        np.testing.assert_allclose(after, vectors @ np.diag(np.maximum(values, 0)) @ vectors.T, atol=1e-10)
    kept = covariances.clone()
    subtract_noise(covariances, noise)
    assert torch.equal(covariances, kept)


def test_noise_subtracted_from_noisy_features_leaves_the_clean_covariance():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(40_000, 4, generator=generator) * torch.tensor([0.0, 0.1, 0.5, 2.0])
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    found = moments(noisy, torch.zeros(len(noisy), dtype=torch.int64), 1, "diagonal")
    remains = subtract_noise(found.covariances, 0.09)[0].tolist()
    assert remains == pytest.approx([0.0, 0.01, 0.25, 4.0], rel=0.03, abs=3e-3)


def test_errors_say_what_to_do():
    weights, counts = torch.tensor([1.0]), torch.tensor([5])
    with pytest.raises(ConfigError, match="a batch of 5 samples from a data set of 4; pass the size of the whole"):
        update_weights(weights, counts, 4, 5)
    with pytest.raises(FeatureError, match="compute both in the same family"):
        update_covariances(torch.ones(1, 2), torch.ones(1), counts, weights, 10)
    with pytest.raises(ConfigError, match=r"pass sigma \*\* 2"):
        subtract_noise(torch.ones(1), -0.1)
    with pytest.raises(FeatureError, match=r"pass \(k, D, D\), \(k, D\) or \(k,\)"):
        subtract_noise(torch.ones(()), 0.1)
    with pytest.raises(FeatureError, match="outside 0 to 0; check the number of clusters"):
        batch_covariances(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(1, 2), "full")
