import pytest
import torch
from torch import nn

from sfumato.models import count_macs, count_parameters


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 7), (5,), 35),
        (nn.Linear(5, 7), (3, 5), 105),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5), 30 * 4 * 27),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 8, 8), 16 * 8 * 18),
        (nn.Conv2d(2, 3, (1, 5)), (2, 4, 9), 20 * 3 * 10),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 6, 5), 30 * 3 * 4 * 9),
        (nn.ConvTranspose2d(4, 8, 2, stride=2, groups=4), (4, 3, 3), 9 * 4 * 2 * 4),
        (nn.Conv1d(2, 3, 4), (2, 10), 7 * 3 * 8),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (3, 4, 4), 0),
    ],
)
def test_multiply_adds_by_hand(layer, shape, macs):
    assert count_macs(layer, shape) == macs


def test_a_layer_that_runs_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), (4,)) == 32
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 20


def test_counting_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    count_macs(net, (1, 5, 5))
    with pytest.raises(RuntimeError):
        count_macs(net, (3, 5, 5))
    assert net.training
    assert not net[2].training
    assert not any(part._forward_hooks for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_parameters_count_and_buffers_do_not():
    net = nn.BatchNorm2d(3).requires_grad_(False)
    assert count_parameters(net) == 6
