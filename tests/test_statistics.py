"""Looking at a module as a training step sees it, and statistics that are those of the weights of now."""

import pytest
import torch
from torch import nn

import sfumato
from sfumato.errors import ConfigError
from sfumato.torch_utils import has_batch_norm

X = torch.rand(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )


def test_as_in_training_computes_what_a_step_computes_and_leaves_no_trace():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with sfumato.as_in_training(net):
        seen = net(X)
    assert not seen.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(seen, net(X))  # the step itself, which moves the statistics
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


def test_as_in_training_wants_a_module_in_training():
    with (
        pytest.raises(ConfigError, match=r"in evaluation mode.*call .train\(\) on it first"),
        sfumato.as_in_training(network().eval()),
    ):
        pass


def test_exact_statistics_are_those_of_the_data():
    net = nn.BatchNorm2d(3)
    net.running_mean.fill_(9.0)
    with sfumato.exact_batch_norm(net):
        for part in X.split(32):
            net(part)
    assert torch.allclose(net.running_mean, X.mean((0, 2, 3)), atol=1e-6)
    expected = torch.stack([part.double().var((0, 2, 3)) for part in X.split(32)]).mean(0)
    assert torch.allclose(net.running_var.double(), expected, atol=1e-6)
    assert net.momentum == 0.1
    assert int(net.num_batches_tracked) == 3


def test_frozen_layers_and_no_batches_change_nothing():
    net = network()
    net[1].eval()
    net[5].running_mean.fill_(2.0)
    frozen = net[1].running_mean.clone()
    with sfumato.exact_batch_norm(net):
        pass
    assert bool((net[5].running_mean == 2.0).all())
    with sfumato.exact_batch_norm(net):
        net(X)
    assert torch.equal(net[1].running_mean, frozen)
    assert not bool((net[5].running_mean == 2.0).any())
    assert has_batch_norm(net)
    assert not has_batch_norm(net.eval())
    assert not has_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))
