import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import kmeans, kmeans_plus_plus, nearest


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n=600, dim=8, k=5, gap=20.0, dtype=torch.float64, seed=3):
    generator = seeded(seed)
    centres = torch.randn(k, dim, generator=generator, dtype=torch.float64) * gap
    truth = torch.arange(n) % k
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return (centres[truth] + noise).to(dtype), truth, centres


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recovers_well_separated_clusters(dtype):
    features, truth, centres = blobs(dtype=dtype)
    found = kmeans(features, 5, generator=seeded())
    assert adjusted_rand_score(truth, found.assignment) == 1.0
    distance = torch.cdist(centres, found.centres.double()).min(1).values
    assert float(distance.max()) < 0.5  # 120 samples of variance 1 in 8 dimensions: about sqrt(8 / 120) = 0.26


def test_lloyd_matches_scikit_learn_from_the_same_start():
    features = torch.randn(500, 6, generator=seeded(1), dtype=torch.float64)
    start = features[:7].clone()
    for iterations in (1, 3, 300):
        oracle = KMeans(7, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(
            features.numpy()
        )
        if iterations == 300:
            found = kmeans(features, 7, init=start, iterations=iterations)
            assert found.inertia == pytest.approx(oracle.inertia_, rel=0.02)
        else:
            found = kmeans(features, 7, init=start, iterations=iterations)
            np.testing.assert_allclose(found.centres.numpy(), oracle.cluster_centers_, atol=1e-10)
            assert found.inertia == pytest.approx(oracle.inertia_, rel=1e-10)
            assert found.assignment.tolist() == oracle.labels_.tolist()


def test_plus_plus_is_as_good_a_start_as_scikit_learns():
    features, _, _ = blobs(n=1000, dim=4, k=20, gap=4.0)
    ours, theirs = [], []
    for seed in range(10):
        start = kmeans_plus_plus(features, 20, seeded(seed))
        ours.append(float(torch.cdist(features, start).min(1).values.square().sum()))
        one = KMeans(20, n_init=1, max_iter=1, random_state=seed).fit(features.numpy())
        theirs.append(one.inertia_)
    assert np.mean(ours) < 1.6 * np.mean(theirs)  # theirs has had one iteration, which is worth about a third


def test_plus_plus_takes_rows_and_never_a_row_twice_while_others_are_left():
    features = torch.randn(12, 3, generator=seeded(2)).repeat(50, 1)
    for seed in range(20):
        start = kmeans_plus_plus(features, 12, seeded(seed))
        assert len(torch.unique(start, dim=0)) == 12
        assert all(bool((row == features).all(1).any()) for row in start)


def test_plus_plus_prefers_far_samples():
    """One sample at distance 1000 among 999 within 1: its share of the squared distance is over 99.8 %."""
    features = torch.rand(1000, 2, generator=seeded(0))
    features[137] = 1000.0
    hits = sum(bool((kmeans_plus_plus(features, 2, seeded(s)) == 1000.0).any()) for s in range(40))
    assert hits >= 39


def test_nearest_matches_brute_force_and_takes_the_first_of_equals():
    features, centres = torch.randn(300, 5, generator=seeded()), torch.randn(9, 5, generator=seeded(1))
    expected = (features[:, None] - centres).square().sum(2).argmin(1)
    assert nearest(features, centres).tolist() == expected.tolist()
    assert nearest(features, centres[:1].repeat(4, 1)).tolist() == [0] * 300
    assert nearest(features[:0], centres).shape == (0,)


def test_offset_does_not_hurt_float32():
    features, truth, _ = blobs(gap=3.0)
    moved = (features + 3000.0).float()
    found = kmeans(moved, 5, generator=seeded())
    oracle = KMeans(5, n_init=1, random_state=0).fit(moved.double().numpy())
    assert found.inertia < 1.05 * oracle.inertia_
    assert adjusted_rand_score(truth, found.assignment) > 0.95


def test_an_empty_cluster_is_restarted_at_the_farthest_sample():
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    found = kmeans(features, 3, init=torch.tensor([[0.0], [20.0], [-500.0]]))
    assert sorted(found.centres.squeeze(1).tolist()) == [0.5, 10.5, 30.0]
    assert torch.bincount(found.assignment, minlength=3).min() == 1


def test_a_restart_leaves_single_samples_alone_and_takes_the_sample_from_its_donor():
    features = torch.tensor([[0.0], [1.0], [2.0], [50.0]])
    found = kmeans(features, 3, init=torch.tensor([[0.5], [90.0], [-500.0]]), iterations=1)
    assert found.centres.squeeze(1).tolist() == [0.5, 50.0, 2.0]


def test_surplus_clusters_keep_their_centres():
    for copies in (1, 2):
        features = torch.tensor([[0.0], [4.0]]).repeat(copies, 1)
        found = kmeans(features, 3, init=torch.tensor([[0.0], [4.0], [9.0]]))
        assert found.centres.squeeze(1).tolist() == [0.0, 4.0, 9.0]


@pytest.mark.parametrize("distinct", [1, 2, 4])
def test_fewer_distinct_samples_than_clusters(distinct):
    points = torch.randn(distinct, 6, generator=seeded(5))
    for copies in (1, 40):
        found = kmeans(points.repeat(copies, 1), 7, generator=seeded())
        assert torch.isfinite(found.centres).all()
        assert len(found.assignment.unique()) == distinct
        assert found.inertia == pytest.approx(0.0, abs=1e-4)


def test_one_sample():
    found = kmeans(torch.tensor([[3.0, 4.0]]), 1)
    assert found.centres.tolist() == [[3.0, 4.0]]
    assert (found.inertia, found.assignment.tolist()) == (0.0, [0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_and_copies_of_the_samples_do_not_matter_given_a_start(seed):
    features, _, _ = blobs(n=120, gap=1.0, seed=seed)
    order = torch.randperm(120, generator=seeded(seed))
    start = features[:4].clone()
    first = kmeans(features, 4, init=start)
    shuffled = kmeans(features[order], 4, init=start)
    twice = kmeans(features.repeat(2, 1), 4, init=start)
    torch.testing.assert_close(first.centres, shuffled.centres)
    torch.testing.assert_close(first.centres, twice.centres)
    assert shuffled.assignment.tolist() == first.assignment[order].tolist()
    assert twice.inertia == pytest.approx(2 * first.inertia)


def test_inertia_never_rises_and_a_warm_start_stays():
    features = torch.randn(400, 5, generator=seeded(9))
    start = kmeans_plus_plus(features, 6, seeded())
    inertia = [kmeans(features, 6, init=start, iterations=i).inertia for i in range(12)]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(inertia))
    done = kmeans(features, 6, init=start, iterations=200)
    again = kmeans(features, 6, init=done.centres, iterations=200)
    assert again.iterations <= 1
    assert again.inertia <= done.inertia * (1 + 1e-6)


def test_same_seed_same_result():
    features = torch.randn(200, 3)
    first, second = (kmeans(features, 5, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first.centres, second.centres)
    state = torch.random.get_rng_state()
    assert torch.equal(kmeans(features, 5).centres, kmeans(features, 5, generator=seeded(0)).centres)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_errors_say_what_to_do():
    features = torch.zeros(3, 2)
    with pytest.raises(FeatureError, match="NaN or infinite values; find the step that produced them"):
        kmeans(torch.tensor([[1.0], [float("nan")]]), 1)
    with pytest.raises(FeatureError, match=r"nothing to fit in features of shape \(0, 2\)"):
        kmeans(features[:0], 1)
    with pytest.raises(ConfigError, match=r"init has shape \(2, 2\); pass centres of shape \(3, 2\)"):
        kmeans(features, 3, init=torch.zeros(2, 2))
    with pytest.raises(FeatureError, match="start without init"):
        kmeans(features, 1, init=torch.full((1, 2), float("inf")))
    with pytest.raises(ConfigError, match="iterations is -1"):
        kmeans(features, 1, iterations=-1)
    with pytest.raises(ConfigError, match="k is 0"):
        kmeans_plus_plus(features, 0)
    with pytest.raises(FeatureError, match="features have 2 dimensions, but the clusters 3; fit again"):
        nearest(features, torch.zeros(1, 3))
