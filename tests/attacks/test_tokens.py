"""Tokens recovered: against what is known in closed form."""

import math

import pytest
import torch
from torch import nn

from sfumato.attacks.tokens import token_recovery
from sfumato.errors import ConfigError, FeatureError
from sfumato.split import Channel, SplitModel

VOCABULARY, LENGTH = 20, 6


class Lookup(nn.Module):
    """Token plus position, as a transformer begins; `mask` hides a position."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)
        self.places = nn.Parameter(torch.randn(LENGTH, table.shape[1], generator=torch.Generator().manual_seed(9)) * 3)

    def forward(self, ids, mask=None):
        x = self.table(ids) + self.places
        return x if mask is None else x * mask[:, :, None]


def texts(count, seed, vocabulary=VOCABULARY):
    return torch.randint(vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def lookup(noise_std, table=None):
    table = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(3)) if table is None else table
    return SplitModel(Lookup(table), Channel(noise_std=noise_std), nn.Flatten())


def test_a_lookup_without_noise_gives_every_token():
    found = token_recovery(lookup(0.0), texts(60, 0), texts(40, 1))
    assert found.recovered == 1
    assert found.standard_error == 0
    assert found.by_position.tolist() == [1.0] * LENGTH
    assert str(found).startswith("tokens recovered: 100.0%")


def test_drowned_in_noise_it_is_chance():
    found = token_recovery(lookup(1e4), texts(200, 0), texts(400, 1))
    assert found.recovered == pytest.approx(1 / VOCABULARY, abs=4 * math.sqrt(0.05 * 0.95 / 2400))
    assert found.chance == pytest.approx(1 / VOCABULARY, abs=0.02)


@pytest.mark.parametrize(("distance", "sigma"), [(1.0, 0.5), (2.0, 0.5), (1.0, 2.0)])
def test_two_tokens_in_gaussian_noise(distance, sigma):
    """The best test errs with probability Phi(-distance / (2 sigma)), whatever lies in the other coordinates."""
    table = torch.zeros(2, 3)
    table[1, 0] = distance
    found = token_recovery(lookup(sigma, table), texts(2000, 0, 2), texts(1500, 1, 2))
    expected = 0.5 * (1 + math.erf(distance / (2 * sigma) / math.sqrt(2)))
    assert found.recovered == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 9000) + 2e-3)
    assert found.standard_error == pytest.approx(math.sqrt(expected * (1 - expected) / 9000), rel=0.1)


def test_units_do_not_matter():
    """Scaled and mixed coordinates with noise of their own: the same tokens are named."""

    class Mixed(nn.Module):
        def __init__(self, matrix):
            super().__init__()
            self.inner, self.matrix = lookup(0.0).edge, matrix

        def forward(self, ids):
            noise = torch.randn(len(ids), LENGTH, 8, generator=torch.Generator().manual_seed(5))
            return (self.inner(ids) + noise) @ self.matrix

    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 8)
    shares = [
        token_recovery(SplitModel(Mixed(matrix), Channel(), nn.Flatten()), texts(300, 0), texts(64, 1)).recovered
        for matrix in (torch.eye(8), mixing)
    ]
    assert 0.3 < shares[0] < 0.99
    assert shares[1] == pytest.approx(shares[0], abs=0.01)


def test_padding_is_neither_learned_nor_counted():
    ids = texts(60, 0)
    own, targets = ids.clone(), texts(40, 1)
    own[:, -2:] = targets[:, -2:] = 0
    shared = lambda ids: {"mask": (ids != 0).float()}  # noqa: E731
    found = token_recovery(lookup(0.0), own, targets, padding=0, shared=shared)
    assert found.recovered == 1
    assert found.by_position[:-2].tolist() == [1.0] * (LENGTH - 2)
    assert bool(found.by_position[-2:].isnan().all())


def test_mistakes_get_a_sentence():
    model = lookup(0.1)
    with pytest.raises(ConfigError, match="own is torch.float32 .* give tokens as whole numbers"):
        token_recovery(model, texts(4, 0).float(), texts(4, 1))
    with pytest.raises(ConfigError, match="own texts have 3 tokens and targets 6"):
        token_recovery(model, texts(4, 0)[:, :3], texts(4, 1))
    with pytest.raises(ConfigError, match="nothing but padding"):
        token_recovery(model, torch.zeros(4, LENGTH, dtype=torch.int64), texts(4, 1), padding=0)
    pooled = SplitModel(nn.EmbeddingBag.from_pretrained(torch.eye(VOCABULARY)), Channel(), nn.Flatten())
    with pytest.raises(FeatureError, match=r"has the shape \(20,\), without a row for each"):
        token_recovery(pooled, texts(4, 0), texts(4, 1))
    with pytest.raises(FeatureError, match="NaN or infinite"):
        token_recovery(lookup(0.0, torch.full((VOCABULARY, 2), torch.nan)), texts(4, 0), texts(4, 1))
