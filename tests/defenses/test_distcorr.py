"""Distance correlation against loops and known values; the defence lowers it."""

import math

import pytest
import torch
from defense_cases import images, split_model

from sfumato.defenses import DistCorr, distance_correlation
from sfumato.errors import ConfigError, FeatureError


def by_loops(x: torch.Tensor, y: torch.Tensor) -> float:
    """Székely, Rizzo and Bakirov 2007, Definition 4, in float64 loops."""
    n = len(x)

    def centred(rows: torch.Tensor) -> list[list[float]]:
        flat = rows.flatten(1).double()
        distance = [[math.dist(a.tolist(), b.tolist()) for b in flat] for a in flat]
        means = [sum(row) / n for row in distance]
        overall = sum(means) / n
        return [[distance[i][j] - means[i] - means[j] + overall for j in range(n)] for i in range(n)]

    a, b = centred(x), centred(y)

    def inner(p: list[list[float]], q: list[list[float]]) -> float:
        return sum(p[i][j] * q[i][j] for i in range(n) for j in range(n)) / n**2

    return math.sqrt(inner(a, b) / math.sqrt(inner(a, a) * inner(b, b)))


def test_it_equals_the_definition():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, 2, generator=generator)
    y = torch.randn(9, 5, generator=generator) + x.flatten(1)[:, :5]
    assert float(distance_correlation(x, y)) == pytest.approx(by_loops(x, y), rel=1e-5)


def test_known_values():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert float(distance_correlation(x, 3 * x + 1)) == pytest.approx(1.0, abs=1e-5)
    assert float(distance_correlation(x, torch.ones(30, 2))) == pytest.approx(0.0, abs=1e-6)
    many = torch.randn(2, 1000, 1, generator=torch.Generator().manual_seed(1))
    assert float(distance_correlation(many[0], many[1])) < 0.15  # independent: of order n^-1/2


def test_its_gradient_is_finite_where_samples_coincide_or_do_not_vary():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for y in (torch.ones(6, 3), torch.tensor([[0.0], [0.0], [1.0], [2.0], [2.0], [3.0]])):
        y.requires_grad_()
        distance_correlation(x, y).backward()
        assert torch.isfinite(y.grad).all()


def test_training_on_the_penalty_lowers_the_distance_correlation():
    x, _ = images()
    one = DistCorr()
    model = split_model([one])
    optimizer = torch.optim.SGD(model.edge.parameters(), lr=0.5)
    seen = []
    for _ in range(15):
        features = model.features(x)
        value = distance_correlation(x, features)
        seen.append(float(value.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert seen[-1] < 0.9 * seen[0]


def test_bad_input():
    with pytest.raises(FeatureError, match="needs pairs"):
        distance_correlation(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="reward leaking"):
        DistCorr(alpha=-0.1)
