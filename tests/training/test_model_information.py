"""The information of a finished model against moments computed by numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel
from sfumato.training.information import measure_information


def images(count: int = 400) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))


def model(noise_std: float) -> SplitModel:
    torch.manual_seed(0)
    return SplitModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), Channel(noise_std=noise_std), nn.Linear(3, 2))


def test_one_cluster_per_class_is_theorem_2_with_the_classes_moments():
    sets, split = images(), model(0.1)
    found = measure_information(split, sets, clusters_per_class=1, seed=0)
    with torch.no_grad():
        features = split.features(sets.float()).numpy().astype(np.float64)
    expected = {"full": 0.0, "diagonal": 0.0}
    for label in (0, 1):
        covariance = np.cov(features[sets.labels.numpy() == label].T, bias=True)
        full = np.linalg.slogdet(np.eye(3) + covariance / 0.01)[1]
        diagonal = np.log1p(np.diag(covariance) / 0.01).sum()
        expected["full"] += 0.5 * (math.log(2) + 0.5 * full)
        expected["diagonal"] += 0.5 * (math.log(2) + 0.5 * diagonal)
    assert found["full"] == pytest.approx(expected["full"], rel=1e-4)
    assert found["diagonal"] == pytest.approx(expected["diagonal"], rel=1e-4)
    assert found["full"] < found["diagonal"]
    assert (found["samples_per_cluster"], found["dimension"]) == (200, 3)


def test_without_noise_there_is_no_finite_information():
    assert measure_information(model(0.0), images(), clusters_per_class=1, seed=0) == {}
