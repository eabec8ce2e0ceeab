"""Which of N images was sent: against loops and closed forms, and against what is provable."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sfumato.attacks import Leakage, identification, identify, measure_leakage
from sfumato.data import ImageSet
from sfumato.errors import ConfigError, FeatureError
from sfumato.split import Channel, SplitModel


def noisy(z_hat, sigma, seed=0):
    return z_hat + sigma * torch.randn(z_hat.shape, generator=torch.Generator().manual_seed(seed))


def images(count=200, seed=0, classes=4):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, tuple(map(str, range(classes))))


def model(scale=(1.0,) * 8, shift=0.0, **channel):
    torch.manual_seed(0)
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        linear.weight *= torch.tensor(scale)[:, None]
        linear.bias.copy_(linear.bias * torch.tensor(scale) + shift)
    edge = nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(8, affine=False))
    edge[2].running_var.fill_(1 - edge[2].eps)
    return SplitModel(edge, Channel(**channel), nn.Linear(8, 4))


class Dropping(nn.Module):
    stochastic = True

    def forward(self, z, generator=None):
        return z * (torch.rand(z.shape, generator=generator) > 0.3)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_is_maximum_likelihood_by_a_plain_loop(sigma):
    z_hat = torch.randn(300, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = noisy(z_hat, sigma)
    likelihoods = [stats.norm.logpdf(one, z_hat.numpy(), sigma).sum(1) for one in z.numpy()]
    expected = [int(np.argmax(row) == i) for i, row in enumerate(likelihoods)]
    assert identify(z, z_hat, sigma).tolist() == expected
    # Unequal noise: each coordinate counts by its own.
    sigmas = torch.tensor([0.1, 0.5, 1.0, 5.0, 0.0])
    own = stats.norm.logpdf(z.numpy()[0, :4], z_hat.numpy()[:, :4], sigmas.numpy()[:4]).sum(1)
    z[:, 4] = 7.0  # tells nothing: of no candidate, equally far from all in units of its own
    z_hat[:, 4] = 0.0
    assert identify(z, z_hat, sigmas)[0] == (np.argmax(own) == 0)


def test_two_candidates_in_closed_form():
    """Pairs at distance d are told apart with probability Phi(d / 2 sigma)."""
    z_hat = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    hits = [identify(noisy(z_hat, 2.0, seed), z_hat, 2.0).mean() for seed in range(600)]
    assert np.mean(hits) == pytest.approx(stats.norm.cdf(5 / 4), abs=4 * np.std(hits) / math.sqrt(600))


def test_ties_share_the_hit():
    z_hat = torch.cat([torch.zeros(5, 3), torch.ones(1, 3)])
    hits = identify(noisy(z_hat, 1e-3), z_hat, 1e-3)
    assert hits.tolist() == pytest.approx([0.2] * 5 + [1.0])
    assert identify(torch.ones(7, 2), torch.ones(7, 2), 0.0).tolist() == pytest.approx([1 / 7] * 7)
    assert identify(z_hat, z_hat, 0.0).tolist() == pytest.approx([0.2] * 5 + [1.0])


def test_chunks_change_nothing(monkeypatch):
    z_hat = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    whole = identify(noisy(z_hat, 1.0), z_hat, 1.0)
    monkeypatch.setattr(identification, "_ROWS", 7)
    assert torch.equal(identify(noisy(z_hat, 1.0), z_hat, 1.0), whole)


@pytest.mark.parametrize(("clusters", "dim", "sigma"), [(1, 2, 1.0), (5, 8, 0.5), (5, 32, 2.0)])
def test_the_law_on_synthetic_gaussian_channels(clusters, dim, sigma):
    """No identification rate exceeds a certificate by more than 3 standard errors, whatever the features."""
    rng = torch.Generator().manual_seed(dim)
    centres = torch.randn(clusters, dim, generator=rng)
    owner = torch.arange(300) % clusters
    features = centres[owner] + 0.5 * torch.randn(300, dim, generator=rng)
    features /= torch.linalg.vector_norm(features, dim=1).max()

    class Given(nn.Module):
        def forward(self, x):
            return features[(x[:, 0, 0, 0] * 255).round().long() + 255 * (x[:, 0, 0, 1] * 255).round().long()]

    pixels = torch.zeros(300, 1, 1, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(300) % 255, torch.arange(300) // 255
    sets = ImageSet(pixels, owner, tuple(map(str, range(clusters))))
    split = SplitModel(Given(), Channel(noise_std=sigma, clip_norm=1.0), nn.Identity())
    for queries in (1, 16):
        found = measure_leakage(split, sets, seed=1, queries=queries, quick=queries > 1)
        assert found.holds, found
        assert found.identified - 3 * found.identified_error <= found.identified_at_most
        assert found.identified - 3 * found.identified_error <= found.clipped_at_most
        assert found.at_most == min(found.identified_at_most, found.clipped_at_most)
        # sigma / sqrt(K), by SciPy.
        threshold = stats.norm.isf(1 / 300)
        clipped = stats.norm.sf(threshold, loc=math.sqrt(queries) / sigma)
        assert found.clipped_at_most == pytest.approx(clipped, abs=1e-12)


def test_more_queries_name_more_and_noise_fewer():
    shares = {
        (sigma, queries): measure_leakage(
            model(noise_std=sigma), images(), seed=0, queries=queries, quick=True
        ).identified
        for sigma, queries in ((0.05, 1), (0.5, 1), (0.5, 25))
    }
    assert shares[0.5, 1] < shares[0.5, 25] <= 1
    assert shares[0.5, 1] < shares[0.05, 1]


def test_without_noise_nothing_is_certified_and_everybody_is_named():
    found = measure_leakage(model(), images(), seed=0)
    assert found.identified == 1
    assert found.information is found.information_error is found.identified_at_most is found.clipped_at_most is None
    assert found.at_most == 1
    assert found.holds
    assert found.sentence == (
        "Of 200 images an attacker names the right one in 100 %; without noise in every direction nothing limits "
        "a better attacker."
    )


@pytest.mark.parametrize("transforms", [(), (Dropping(),)])
def test_units_of_a_coordinate_change_nothing_where_the_channel_is_not_plain_noise(transforms):
    scale = (1.0, 1e-3, 1e3, 1.0, 10.0, 1.0, 1.0, 0.1)
    plain = measure_leakage(model(transforms=transforms), images(), seed=0)
    scaled = measure_leakage(model(scale, transforms=transforms), images(), seed=0)
    assert scaled.identified == pytest.approx(plain.identified, abs=0.01)
    if transforms:  # a lost coordinate is 0 in the one case and 0 in the other, and the rest still tells
        assert 0.3 < plain.identified < 1


def test_quantised_releases_are_compared_as_an_attacker_would():
    coarse = measure_leakage(model(noise_std=0.05, quantize_bits=2, low=-3.0, high=3.0), images(), seed=0, quick=True)
    fine = measure_leakage(model(noise_std=0.05, quantize_bits=8, low=-3.0, high=3.0), images(), seed=0, quick=True)
    assert coarse.identified < fine.identified
    assert fine.identified == pytest.approx(
        measure_leakage(model(noise_std=0.05), images(), seed=0, quick=True).identified, abs=0.1
    )


def test_modes_samples_and_what_json_gets():
    split = model(noise_std=0.5).train()
    split.edge[2].eval()
    found = measure_leakage(split, images(), seed=0, most=50, quick=True)
    assert split.training
    assert split.cloud.training
    assert not split.edge[2].training
    assert found.candidates == 50
    assert found.as_dict()["identified"] == found.identified
    assert set(found.as_dict()) == {
        "identified", "identified_error", "candidates", "queries", "information", "information_error",
        "identified_at_most", "clipped_at_most",
    }  # fmt: skip
    again = measure_leakage(split, images(), seed=0, most=50, quick=True)
    assert again == found


def test_sentences():
    assert Leakage(0.61, 0.02, 359, 1, 8.0, 0.1, 0.96, None).sentence == (
        "Of 359 images an attacker names the right one in 61 %; no attacker can exceed 96 %."
    )
    assert Leakage(0.61, 0.02, 1359, 16, 8.0, 0.1, 1.0, 1.0).sentence == (
        "Of 1,359 images an attacker names the right one in 61 % from 16 queries; "
        "no certificate limits a better attacker."
    )
    assert not Leakage(0.9, 0.01, 359, 1, 1.0, 0.1, 0.5, None).holds


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.zeros(3, 2), torch.zeros(4, 2), 1.0), FeatureError, r"released \(3, 2\) and candidates \(4, 2\)"),
        ((torch.zeros(0, 2), torch.zeros(0, 2), 1.0), FeatureError, "do not match"),
        ((torch.full((3, 2), torch.nan), torch.zeros(3, 2), 1.0), FeatureError, "NaN or infinite"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), -1.0), ConfigError, "noise_std must be one standard deviation"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3)), ConfigError, "or one for each coordinate"),
    ],
)
def test_mistakes_are_explained(arguments, error, match):
    with pytest.raises(error, match=match):
        identify(*arguments)


def test_too_few_images():
    with pytest.raises(ConfigError, match="identification among 3 images says little; give at least 4"):
        measure_leakage(model(noise_std=1.0), images(3), seed=0)
