"""Attackers who know less."""

import pytest
import torch
from attack_cases import images, victim

from sfumato.attacks import (
    Knowledge,
    NearestConfig,
    Queries,
    QueryObserver,
    RidgeAttack,
    StrongAttack,
    StrongConfig,
    build,
    invert,
    observe,
)
from sfumato.errors import ConfigError

FIRST = torch.arange(50)


def test_the_worst_case_is_the_default():
    observer = observe(victim(), images(50))
    assert len(observer) == 50
    assert observer.white_box
    assert observer.encodes
    assert observer.noise_std == 0.05


def test_a_fraction_another_set_and_no_white_box():
    observer = observe(victim(), images(50), Knowledge(fraction=0.2, white_box=False))
    assert len(observer) == 10
    assert not observer.white_box
    with pytest.raises(ConfigError, match="has no encoder"):
        observer.features(observer.pixels(FIRST[:1]))
    other = images(30, seed=9)
    theirs = observe(victim(), images(50), Knowledge(other_data=True), other=other)
    assert torch.equal(theirs.images.images, other.images)
    with pytest.raises(ConfigError, match="give it as `other`"):
        observe(victim(), images(50), Knowledge(other_data=True))


@pytest.mark.parametrize(("believed", "up_to", "expected"), [(0.4, None, 0.4), (0.0, None, 0.0), (0.1, 0.5, 0.311)])
def test_it_simulates_the_noise_that_it_believes_in(believed, up_to, expected):
    model = victim(noise_std=0.05)
    observer = observe(model, images(50), Knowledge(noise_std=believed, noise_up_to=up_to))
    x = observer.pixels(FIRST)
    z = torch.stack([observer.release(x, torch.Generator().manual_seed(seed)) for seed in range(20)])
    spread = float((z - model.features(x).detach()).square().mean().sqrt())
    assert spread == pytest.approx(expected, rel=0.05, abs=1e-6)  # root of (0.1^2 + 0.1 0.5 + 0.5^2) / 3
    assert model.channel.noise_std == 0.05
    assert observer.noise_std == pytest.approx(believed if up_to is None else 0.3)


def test_a_believed_noise_meets_the_true_grid():
    model = victim(noise_std=0.1, quantize_bits=3)
    observer = observe(model, images(50), Knowledge(noise_std=0.3))
    low, high = model.channel.quantization_range
    grid = torch.linspace(low, high, 8)
    z = observer.release(observer.pixels(FIRST)).flatten()
    assert float((z[:, None] - grid).abs().min(1).values.max()) < 1e-5


def test_recorded_pairs_are_all_there_is():
    observer = observe(victim(noise_std=0.5), images(200), Knowledge(pairs=30))
    assert len(observer) == 30
    assert not observer.white_box
    x, z = observer.pairs(FIRST[:5])
    assert torch.equal(z, observer.pairs(FIRST[:5])[1])
    for forbidden in (observer.release, observer.encode):
        with pytest.raises(ConfigError, match="only recorded pairs and can encode nothing"):
            forbidden(x)
    with pytest.raises(ConfigError, match="give it a plain Observer"):
        QueryObserver(observer, Queries(2))
    attack = StrongAttack(StrongConfig(epochs=2, width=4, blocks=1)).fit(observer)
    assert attack.views == "none"


def test_who_knows_more_reconstructs_better():
    model, train, test = victim(), images(300), images(100, seed=1)

    def error(knowledge: Knowledge) -> float:
        return float(invert(RidgeAttack().fit(observe(model, train, knowledge)), model, test).mse.mean())

    everything = error(Knowledge())
    assert everything < error(Knowledge(fraction=0.1))
    assert everything < error(Knowledge(pairs=20))
    assert everything < error(Knowledge(noise_std=1.0))
    build(NearestConfig()).fit(observe(model, train, Knowledge(pairs=20)))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"fraction": 0.0}, "give a number above 0"),
        ({"fraction": 1.5}, "give at most 1"),
        ({"pairs": 1}, "give at least 2"),
        ({"noise_std": -1.0}, "give at least 0"),
        ({"noise_up_to": 1.0}, "give noise_std as its lower end"),
        ({"pairs": 5, "noise_std": 0.1}, "leave out pairs or noise_std"),
    ],
)
def test_mistakes(values, text):
    with pytest.raises(ConfigError, match=text):
        Knowledge(**values)
