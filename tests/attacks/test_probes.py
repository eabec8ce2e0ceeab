"""What else can be read."""

import numpy as np
import pytest
import torch
from attack_cases import images, victim
from sklearn.linear_model import LogisticRegression

from sfumato.attacks import ATTRIBUTES, Observer, RidgeAttack, probe_attribute
from sfumato.attacks.probes import _scores, _softmax_regression, attributes_of
from sfumato.data import ImageSet
from sfumato.errors import ConfigError


@pytest.fixture(scope="module")
def world():
    model = victim(noise_std=0.05)
    return model, Observer(model, images(400)), images(200, seed=1)


def test_brightness_is_read_from_the_feature_and_from_the_reconstructed_image(world):
    model, observer, test = world
    attack = RidgeAttack().fit(observer)
    for source, reader in (("feature", None), ("reconstruction", attack)):
        probe = probe_attribute(observer, model, test, "brightness", attack=reader)
        assert probe.source == source
        assert probe.accuracy > 0.8
        assert probe.chance < 0.65
        assert probe.images == 200
        assert probe.error == pytest.approx((probe.accuracy * (1 - probe.accuracy) / 200) ** 0.5)


def test_what_is_not_there_is_read_at_chance(world):
    model, observer, test = world
    coin = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (400,), generator=coin), torch.randint(2, (200,), generator=coin)
    probe = probe_attribute(observer, model, test, "coin", labels=labels)
    assert abs(probe.accuracy - 0.5) < 4 * (0.25 / 200) ** 0.5


def test_the_classifier_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    labels = (x[:, 0] + 0.5 * x[:, 1] + torch.randn(300, generator=generator) > 0).long()
    penalty = 0.1
    ours = _scores(x, _softmax_regression(x, labels, 2, penalty)).softmax(1)
    # penalty |W|^2 / (2 D) + mean loss; two columns w, -w make |W|^2 = |v|^2 / 2 of the binary weight v = 2 w
    stock = LogisticRegression(C=2 * 5 / (penalty * 300), tol=1e-8, max_iter=1000).fit(x.numpy(), labels.numpy())
    assert np.allclose(ours.numpy(), stock.predict_proba(x.numpy()), atol=2e-3)


def test_attributes_are_what_their_names_say():
    dark, bright = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 200.0)
    bright[:, 2] += 20
    bright[0, :, :, 0] = 0
    pixels = torch.cat([dark, bright]).to(torch.uint8)
    some = ImageSet(pixels, torch.tensor([0, 1, 1, 0]), ("a", "b"))
    assert attributes_of(some, some, "brightness")[0].tolist() == [0, 0, 1, 1]
    assert attributes_of(some, some, "colour")[0].tolist() == [0, 0, 2, 2]
    assert attributes_of(some, some, "asymmetry")[0].tolist() == [0, 0, 1, 0]
    assert attributes_of(some, some, "class")[1].tolist() == [0, 1, 1, 0]
    for name in ATTRIBUTES:
        assert len(attributes_of(some, some.subset([1]), name)[1]) == 1


def test_mistakes(world):
    model, observer, test = world
    with pytest.raises(ConfigError, match="unknown attribute 'banana'; choose one of brightness"):
        probe_attribute(observer, model, test, "banana")
    with pytest.raises(ConfigError, match="has 3 and 200 labels for 400 and 200 images"):
        probe_attribute(observer, model, test, "odd", labels=(torch.zeros(3).long(), torch.zeros(200).long()))
