"""CEM where the targets are no classes, features of any shape, and labels that are not what they should be."""

import math

import numpy as np
import pytest
import torch
from reference import SlowCEM
from sklearn.cluster import KMeans

import sfumato
from sfumato.errors import ConfigError, FeatureError

SIGMA = 0.1
DATA = torch.Generator().manual_seed(0)
CENTRES = torch.rand(5, 12, generator=DATA)
FEATURES = CENTRES[torch.randint(0, 5, (200,), generator=DATA)] + 0.05 * torch.randn(200, 12, generator=DATA)
VALUES = torch.rand(200, generator=DATA)


def make(**options):
    return sfumato.CEM(**({"num_classes": None, "clusters": 5, "noise_std": SIGMA} | options))


def gradient_of(cem, z, labels=None):
    z = z.clone().requires_grad_()
    cem(z, labels).backward()
    return z.grad.double().numpy()


@pytest.mark.parametrize("form", ["full", "diagonal", "spherical"])
@pytest.mark.parametrize("scaling", ["per_dimension", "literal"])
def test_one_mixture_for_the_whole_set_equals_a_float64_loop(form, scaling):
    cem = make(covariance=form, scaling=scaling)
    cem.refresh(FEATURES, VALUES)
    centres = cem.mixture.centres.double().numpy()
    oracle = SlowCEM(FEATURES.double().numpy(), None, centres, 5, SIGMA, form)
    assert cem.information == pytest.approx(oracle.information(), rel=1e-4)
    batch = FEATURES[:32]
    wanted = oracle.gradient(batch.double().numpy(), None) / (200 if scaling == "literal" else 32 * 12)
    np.testing.assert_allclose(gradient_of(cem, batch, VALUES[:32]), wanted, rtol=1e-3, atol=1e-7)


def test_its_clusters_are_those_of_k_means():
    cem = make()
    cem.refresh(FEATURES)
    theirs = KMeans(5, n_init=10, random_state=0).fit(FEATURES.numpy())
    ours = torch.cdist(FEATURES, cem.means).min(1).values.square().sum()
    assert float(ours) <= 1.02 * theirs.inertia_
    assert sorted(cem.weights.tolist()) == pytest.approx(sorted((np.bincount(theirs.labels_) / 200).tolist()), abs=0.02)


@pytest.mark.parametrize(
    "labels",
    [None, VALUES, VALUES[:, None], (VALUES[:, None] > torch.tensor([0.2, 0.5, 0.9])).float(), VALUES > 0.5],
    ids=["none", "numbers", "column", "several", "yes-or-no"],
)
def test_targets_that_are_no_classes_change_nothing(labels):
    ours, plain = make(), make()
    ours.refresh(FEATURES, labels)
    plain.refresh(FEATURES)
    part = None if labels is None else labels[:20]
    assert ours.information == plain.information
    assert np.array_equal(gradient_of(ours, FEATURES[:20], part), gradient_of(plain, FEATURES[:20]))


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2), (4, 3), (2, 3, 1, 2)])
@pytest.mark.parametrize("classes", [None, 4])
def test_features_of_any_shape_are_flattened(shape, classes):
    options = {"num_classes": None, "clusters": 4} if classes is None else {"num_classes": 4, "clusters_per_class": 1}
    labels = (torch.arange(200) % 4).to(torch.int32)
    flat, shaped = (sfumato.CEM(noise_std=SIGMA, **options) for _ in range(2))
    flat.refresh(FEATURES, labels)
    shaped.refresh(FEATURES.reshape(200, *shape), labels)
    assert shaped.information == flat.information
    z = FEATURES[:9].reshape(9, *shape)
    found = gradient_of(shaped, z, labels[:9])
    assert found.shape == (9, *shape)
    assert np.array_equal(found.reshape(9, 12), gradient_of(flat, FEATURES[:9], labels[:9]))


def test_a_regression_keeps_its_target_and_loses_the_rest():
    """The first coordinate of z_hat is the target; CEM shrinks the others and leaves the spread of clusters."""
    features = torch.cat([5 * VALUES[:, None], FEATURES[:, 1:]], 1)
    cem = make(clusters=8)
    z = features.clone()
    cem.refresh(z, VALUES)
    before = cem.information
    for _ in range(30):
        z.requires_grad_()
        loss = (z[:, 0] - 5 * VALUES).square().mean() + 2 * cem(z, VALUES)
        (slope,) = torch.autograd.grad(loss, z)
        z = (z - 20 * slope).detach()
        cem.refresh(z, VALUES)
    assert cem.information < before - 2
    assert float(np.corrcoef(z[:, 0].numpy(), VALUES.numpy())[0, 1]) > 0.9


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (VALUES, r"labels are torch.float32 \(200,\), not class numbers .* build CEM\(num_classes=None, clusters="),
        (torch.eye(4)[torch.arange(200) % 4].long(), r"labels are torch.int64 \(200, 4\).*labels.argmax\(1\)"),
        (VALUES > 0.5, "labels are torch.bool"),
        ([0] * 200, r"labels are a list; give a tensor \(200,\) of class numbers"),
        (torch.zeros(3, dtype=torch.int64), r"labels must have shape \(200,\)"),
        (torch.full((200,), 4), "labels reach from 4 to 4, outside 0 to 3; check the number of classes"),
        (torch.full((200,), -1), "labels reach from -1"),
        (torch.zeros(200, dtype=torch.int64, device="meta"), "labels are on meta, the features on cpu; move them"),
    ],
    ids=range(8),
)  # fmt: skip
def test_wrong_labels_get_one_sentence_in_refresh_and_in_the_loss(labels, match):
    cem = sfumato.CEM(num_classes=4, noise_std=SIGMA)
    with pytest.raises(FeatureError, match=match) as caught:
        cem.refresh(FEATURES, labels)
    assert "\n" not in str(caught.value)
    cem.refresh(FEATURES, torch.arange(200) % 4)
    with pytest.raises(FeatureError, match=match):
        cem(FEATURES, labels)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clusters": None}, "clusters is None, but without classes.*such as clusters=10"),
        ({"clusters": 0}, "clusters is 0"),
        ({"num_classes": 4}, "give clusters_per_class, or num_classes=None"),
        ({"scaling": "as_published", "covariance": "spherical"}, "inside each class"),
    ],
)
def test_settings_without_meaning(options, match):
    with pytest.raises(ConfigError, match=match):
        make(**options)


def test_a_wrong_number_of_targets_is_refused():
    cem = make()
    with pytest.raises(FeatureError, match=r"labels of shape \(3, 2\) are not one for each of 200 features"):
        cem.refresh(FEATURES, torch.rand(3, 2))


def test_it_says_what_it_is():
    assert "num_classes=None, clusters=5" in repr(make())
    assert math.isclose(make()._health.needed, math.log(5))
