"""What the cloud computes is attacked too, and a scrambled feature is called scrambled."""

import pytest
import torch
from attack_cases import images
from torch import nn

from sfumato.attacks import (
    NearestAttack,
    Observer,
    RidgeAttack,
    cloud_activations,
    invert,
    obfuscation,
    rank_activations,
)
from sfumato.attacks.activations import activations
from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel


class Scramble(nn.Module):
    """Grey levels chained modulo 256, forwards and backwards: each value depends on all pixels, and nothing is lost."""

    def forward(self, x):
        levels = (x.flatten(1) * 255).round().long()
        for _ in range(3):
            for place in range(1, levels.shape[1]):
                levels[:, place] = (levels[:, place] + (levels[:, place - 1] + 91) ** 2 * 7 + 13) % 256
            levels = levels.flip(1)
        return levels.float() / 255


class Unscramble(nn.Module):
    """The way back inside one forward, without a module of its own, and something that recognises."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 3)

    def forward(self, z):
        levels = (z * 255).round().long()
        for _ in range(3):
            levels = levels.flip(1).clone()
            for place in range(levels.shape[1] - 1, 0, -1):
                levels[:, place] = (levels[:, place] - (levels[:, place - 1] + 91) ** 2 * 7 - 13) % 256
        return self.last(levels.float() / 255)


@pytest.fixture(scope="module")
def cipher():
    return SplitModel(Scramble(), Channel(), Unscramble())


def test_the_way_back_is_one(cipher):
    x = images(5).float()
    z = cipher.encode(x)
    kept = {}
    cipher.cloud.last.register_forward_pre_hook(lambda _, given: kept.setdefault("x", given[0]))
    cipher.cloud(z)
    assert torch.allclose(kept["x"], x.flatten(1), atol=1e-6)


def test_a_cipher_falls_to_ridge_and_nearest_on_what_the_cloud_computes(cipher):
    seen, unseen = Observer(cipher, images(200)), images(40, seed=1)
    outside = float(invert(RidgeAttack().fit(seen), cipher, unseen).mse.mean())
    best = rank_activations(seen)[0]
    inside = seen.inside(best.name)
    assert float(invert(RidgeAttack().fit(inside), cipher, unseen).mse.mean()) < 1e-6
    assert outside > 0.01
    assert float(invert(NearestAttack().fit(inside), cipher, unseen).mse.mean()) < 0.5 * outside
    together = seen.inside(*(one.name for one in seen.activations() if one.dimension >= 3))
    assert together.feature_shape[0] > 64
    assert not inside.white_box


def test_its_feature_is_called_scrambled_and_that_of_honest_encoders_is_not(cipher):
    found = obfuscation(cipher, images(300))
    assert found.moved == pytest.approx(1, abs=0.1)
    assert found.obfuscated
    assert "it is scrambled" in found.sentence
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Sigmoid())
    for edge in (nn.Identity(), conv, nn.Sequential(nn.Flatten(), nn.Linear(64, 5))):
        honest = obfuscation(SplitModel(edge, Channel(noise_std=0.1), nn.Identity()), images(300))
        assert honest.moved < 0.05
        assert not honest.obfuscated


def test_of_the_identity_it_is_what_a_loop_says():
    """One coordinate by a level of its standard deviation, over the distance of two white vectors; white pixels."""
    pixels = torch.randint(0, 256, (2000, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    some = images(1).__class__(pixels, torch.zeros(2000, dtype=torch.long), ("a",))
    x = some.float().flatten(1).double()
    white = (x - x.mean(0)) / x.std(0)
    far = (white - white.roll(1, 0)).norm(dim=1)
    expected = float((1 / 255 / x.std()) * (1 / far).mean())
    found = obfuscation(SplitModel(nn.Identity(), Channel(), nn.Identity()), some, most=2000)
    assert found.moved == pytest.approx(expected, rel=0.02)


def test_every_operation_is_seen_as_it_was_before_others_overwrote_it():
    cloud = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    model = SplitModel(nn.Flatten(), Channel(), cloud)
    found = cloud_activations(model, torch.rand(2, 1, 1, 3))
    assert [one.dimension for one in found] == [4, 4, 2]
    z = torch.randn(6, 3)
    values = list(activations(cloud, z, [one.name for one in found]).values())
    assert torch.allclose(values[0].float(), cloud[0](z), atol=1e-6)
    assert torch.allclose(values[1].float(), cloud[0](z).relu(), atol=1e-6)
    assert torch.allclose(values[2].float(), cloud(z), atol=1e-6)
    with pytest.raises(ConfigError, match="the cloud computes nothing called 'banana'"):
        activations(cloud, z, ["banana"])
