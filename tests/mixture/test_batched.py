"""What a GPU does in one product equals what a CPU does cluster by cluster."""

import pytest
import torch

from sfumato.errors import FeatureError
from sfumato.mixture.precision import DensePrecision, LowRankPrecision, _grouped, tile_rows


@pytest.mark.parametrize(("rows", "clusters"), [(128, 30), (5, 600), (64, 1), (1, 1), (0, 4), (40, 7)])
def test_every_row_has_its_own_place_in_a_tile_of_its_cluster(rows, clusters):
    assignment = torch.randint(0, clusters, (rows,), generator=torch.Generator().manual_seed(rows))
    owner, tile, slot = tile_rows(assignment, clusters)
    assert torch.equal(owner[tile], assignment)
    assert len(set(zip(tile.tolist(), slot.tolist(), strict=True))) == rows
    assert len(owner) == rows // 8 + min(rows, clusters)


@pytest.mark.parametrize("elements", [1, 100, 1 << 27])
def test_factors_do_not_depend_on_how_many_are_made_at_once(elements, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(7, 4, 5, generator=generator)
    covariances = samples.mT @ samples
    parts = [slice(j, j + max(1, elements // 20)) for j in range(0, 7, max(1, elements // 20))]
    monkeypatch.setattr("sfumato.mixture.precision._parts", lambda _: parts)
    dense, low = DensePrecision(covariances, 0.1), LowRankPrecision(samples, 0.1)
    shifted = covariances.double() + 0.1 * torch.eye(5, dtype=torch.float64)
    assert torch.allclose(dense.table.double(), shifted.inverse(), atol=1e-5)
    expected = shifted.logdet() - 5 * torch.tensor(0.1, dtype=torch.float64).log()
    assert torch.allclose(dense.log_ratio, expected)
    assert torch.allclose(low.log_ratio, expected)


@pytest.mark.parametrize(("rows", "clusters"), [(128, 30), (5, 60), (64, 1), (0, 4)])
def test_tiles_give_the_products_of_a_loop(rows, clusters):
    generator = torch.Generator().manual_seed(0)
    assignment = torch.randint(0, clusters, (rows,), generator=generator)
    z = torch.randn(rows, 6, generator=generator)
    first, second = torch.randn(clusters, 6, 3, generator=generator), torch.randn(clusters, 3, 6, generator=generator)
    loop = [z[i] @ first[j] @ second[j] for i, j in enumerate(assignment.tolist())]
    expected = torch.stack(loop) if loop else z
    for tiled in (True, False):
        assert torch.allclose(_grouped(z, assignment, first, second, tiled=tiled), expected, atol=1e-5)


@pytest.mark.parametrize("make", [DensePrecision, LowRankPrecision])
def test_covariances_that_overflowed_are_one_sentence(make):
    matrices = torch.eye(3).repeat(2, 1, 1)
    matrices[1, 0, 0] = torch.inf
    with pytest.raises(FeatureError, match="grown without bound; end the encoder in a sigmoid"):
        make(matrices, 0.01)
