"""The information of a finished model against its closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel
from sfumato.training.evaluate import measure_information


def images(count: int = 600) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))


def model(noise_std: float) -> SplitModel:
    torch.manual_seed(0)
    return SplitModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), Channel(noise_std=noise_std), nn.Linear(3, 2))


def test_random_pixels_through_a_linear_encoder_have_the_information_of_a_gaussian():
    """Sums of 64 uniform pixels are all but Gaussian, and labels that tell nothing cost nothing to speak of."""
    sets, split = images(), model(0.1)
    found = measure_information(split, sets, seed=0)
    weight = split.edge[1].weight.detach().double().numpy()
    exact = 0.5 * np.linalg.slogdet(np.eye(3) + weight @ weight.T / 12 / 0.01)[1]
    assert exact - 3 * found["standard_error"] < found["held_out"] < exact + 3 * found["standard_error"] + 0.2
    assert (found["samples"], found["dimension"]) == (600, 3)


def test_without_noise_there_is_no_finite_information():
    assert measure_information(model(0.0), images(), seed=0) == {}


def test_of_more_images_a_sample_is_used(monkeypatch):
    monkeypatch.setattr("sfumato.training.evaluate._MOST_FOR_INFORMATION", 50)
    assert measure_information(model(0.1), images(), seed=0)["samples"] == 50
    assert measure_information(model(0.1), images(), seed=0)["held_out"] == pytest.approx(
        measure_information(model(0.1), images(), seed=0)["held_out"]
    )
