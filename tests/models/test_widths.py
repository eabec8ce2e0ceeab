"""Taking channels out, and making a network as narrow as stored weights."""

import pytest
import torch
from torch import nn

from sfumato.errors import CheckpointError
from sfumato.models.widths import fit_to_state, keep_channels, prunable


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1)
    ).eval()


def test_what_is_kept_computes_what_it_computed():
    net = chain()
    x = torch.rand(2, 3, 8, 8)
    kept = torch.tensor([0, 2, 5])
    with torch.no_grad():
        gone = [index for index in range(6) if index not in kept]
        reference = chain()
        reference[4].weight[:, gone] = 0.0
        expected = reference(x)
        keep_channels(prunable(net)[0], kept)
        assert torch.allclose(net(x), expected, atol=1e-6)
    assert (net[0].out_channels, net[1].num_features, net[4].in_channels) == (3, 3, 3)


def test_groups_need_a_normalisation_and_a_reader():
    assert len(prunable(chain())) == 1
    assert prunable(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))) == []
    assert prunable(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 2))) == []


def test_a_network_takes_the_shapes_of_a_pruned_one():
    pruned, whole = chain(), chain()
    keep_channels(prunable(pruned)[0], torch.tensor([1, 3]))
    assert fit_to_state(whole, pruned.state_dict())
    whole.load_state_dict(pruned.state_dict())
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(whole(x), pruned(x), atol=1e-6)
    assert not fit_to_state(whole, pruned.state_dict())


def test_wider_weights_are_another_network():
    wide = nn.Sequential(nn.Conv2d(3, 60, 3))
    with pytest.raises(CheckpointError, match="belongs to another network"):
        fit_to_state(nn.Sequential(nn.Conv2d(3, 6, 3)), wide.state_dict())
