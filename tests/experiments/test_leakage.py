"""Identification and information against a channel whose answers are known."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

from sfumato import Channel, SplitModel
from sfumato.data import ImageSet
from sfumato.experiments.leakage import measure_leakage

IMAGES = ImageSet(
    torch.randint(0, 256, (400, 1, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.zeros(400, dtype=torch.int64),
    ("one",),
)


def model(noise_std: float, clip_norm: float | None = None) -> SplitModel:
    channel = Channel(noise_std=noise_std, clip_norm=clip_norm)
    return SplitModel(nn.Flatten(), channel, nn.Identity())


def test_without_noise_everybody_with_a_pixel_of_their_own_is_named_and_information_is_infinite():
    found = measure_leakage(model(0.0), IMAGES)
    assert found.identified == pytest.approx(len(IMAGES.images.unique()) / 400)  # of equals the first is named
    assert (found.information, found.identified_at_most) == (None, None)


def test_a_pixel_under_noise_tells_about_as_much_as_a_gaussian_would():
    """A uniform pixel has variance 1/12: information at most 1/2 log(1 + 1 / (12 sigma^2)), and close to it."""
    found = measure_leakage(model(0.3, clip_norm=1.0), IMAGES, seed=1)
    gaussian = 0.5 * math.log(1 + 1 / (12 * 0.09))
    assert found.information == pytest.approx(gaussian, abs=0.08)
    assert 1 / 400 < found.identified_at_most < 0.3
    assert found.identified <= found.identified_at_most
    normal = NormalDist()
    assert found.clipped_at_most == pytest.approx(normal.cdf(normal.inv_cdf(1 / 400) + 1 / 0.3), rel=1e-6)
