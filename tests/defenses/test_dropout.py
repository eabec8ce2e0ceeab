"""Dropped features are dropped for the cloud and for the attacker, in training and at inference."""

import pytest
import torch
from defense_cases import images, split_model

from sfumato.attacks import Observer
from sfumato.data import ImageSet
from sfumato.defenses import Dropout
from sfumato.errors import ConfigError


@pytest.mark.parametrize("training", [True, False])
def test_a_fifth_is_zero_in_training_and_at_inference_and_the_rest_is_not_rescaled(training):
    x, _ = images(200)
    model = split_model([Dropout()], noise_std=0.0).train(training)
    with torch.no_grad():
        out = model.outputs(x)
    zero = out.released == 0
    assert float(zero.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(out.released[~zero], out.features[~zero])
    assert float(out.features.min()) > 0  # the zeros come from dropping, not from the encoder


def test_the_attacker_never_sees_the_whole_feature():
    x, _ = images(50)
    model = split_model([Dropout(0.5)], noise_std=0.0)
    pixels = ImageSet((x * 255).to(torch.uint8), torch.zeros(len(x), dtype=torch.int64), ("a",))
    observer = Observer(model, pixels)
    first, second = observer.release(x), observer.release(x)
    assert float((first == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(first == 0, second == 0)  # a new mask for every release


def test_bad_rates():
    for rate in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="share of the feature to drop"):
            Dropout(rate)
