"""PATROL's encoder: one more layer before pruning, no more parameters than the others afterwards."""

import pytest
import torch
from defense_cases import IMAGE, epoch_of, images, split_model
from torch import nn

from sfumato.defenses import Patrol
from sfumato.defenses.patrol import prune_to, size_without_stem
from sfumato.errors import ConfigError
from sfumato.models import build, count_parameters


def paper_encoder(stem: int | None) -> nn.Module:
    edge, _ = build("vgg11", cut=2, num_classes=10, image_shape=(3, 32, 32), **({"stem": stem} if stem else {}))
    return edge


def test_the_papers_encoder_is_pruned_to_the_size_of_the_others():
    edge = paper_encoder(16)
    assert count_parameters(edge) == 93_224
    assert size_without_stem(edge, 16, 3) == 85_256
    prune_to(edge, 85_256)
    # 0.083 M in the paper's Table 9. The next larger common share of the channels would be too large.
    assert count_parameters(edge) <= 85_256
    assert count_parameters(edge) == pytest.approx(84_000, abs=1300)
    with torch.no_grad():
        assert edge(torch.rand(2, 3, 32, 32)).shape == (2, 8, 8, 8)


def test_residual_blocks_are_pruned_inside():
    edge, _ = build("resnet20", cut="stage2.block1", num_classes=200, image_shape=(3, 64, 64), stem=16)
    budget = size_without_stem(edge, 16, 3)
    assert budget == 112_472
    prune_to(edge, budget)
    assert 0.9 * budget < count_parameters(edge) <= budget
    with torch.no_grad():
        assert edge(torch.rand(2, 3, 64, 64)).shape == (2, 8, 16, 16)


def test_channels_that_pass_nothing_on_go_first_and_change_nothing():
    edge = paper_encoder(16).eval()
    norms = [part for part in edge.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:  # a tenth of the channels is dead: its batch normalisation gives 0
            dead = torch.randperm(norm.num_features)[: norm.num_features // 10 + 1]
            norm.weight[dead] = 0.0
            norm.bias[dead] = 0.0
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = edge(x)
        prune_to(edge, 85_256)
        assert torch.allclose(edge(x), before, atol=1e-5)


def test_it_prunes_once_when_its_time_has_come_and_says_so():
    x, y = images()
    one = Patrol(stem=6, prune_at=0.5, width=4, blocks=1)
    model = split_model([one])
    limit = size_without_stem(model.edge, 6, IMAGE[0])
    told = []
    sizes = []
    for index in range(10):
        one.on_epoch(epoch_of(model, x, y, index, lambda: told.append(True)))
        sizes.append(count_parameters(model.edge))
    assert len(told) == 1
    assert len(set(sizes[:5])) == 1
    assert sizes[4] > limit >= sizes[5]
    assert one.report()["pruned_parameters"] == sizes[5] == sizes[-1]


def test_bad_input():
    with pytest.raises(ConfigError, match="share of the training"):
        Patrol(prune_at=1.0)
    with pytest.raises(ConfigError, match="at least 1 channel"):
        Patrol(stem=0)
    with pytest.raises(ConfigError, match="cannot be pruned to 10"):
        prune_to(paper_encoder(16), 10)
