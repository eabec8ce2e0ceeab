import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.errors import ConfigError
from sfumato.models import ReconstructionNet, count_macs, count_parameters, resnet20, vgg11


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


class First(nn.LSTM):
    """A recurrent layer that gives its sequence alone."""

    def forward(self, x):
        return super().forward(x)[0]


class Squared(nn.Bilinear):
    def forward(self, x):
        return super().forward(x, x)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (First(6, 4, batch_first=True), (5, 6), 5 * 16 * (6 + 4)),
        (First(6, 4, batch_first=True, bidirectional=True, num_layers=2), (5, 6), 5 * 32 * (6 + 4 + 8 + 4)),
        (Squared(6, 6, 3), (6,), 3 * 36),
    ],
)
def test_products_without_an_operator_of_their_own_count(layer, shape, macs):
    assert count_macs(layer, shape) == macs


@pytest.mark.parametrize(("layer", "shape"), [(nn.Embedding(9, 2), (5,)), (nn.MultiheadAttention(8, 2), (5, 8))])
def test_what_takes_other_inputs_is_told_so(layer, shape):
    with pytest.raises(ConfigError, match=r"does not run on one floating-point input of shape \(5.*; give the shape"):
        count_macs(layer, shape)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 7), (3, 5), 105 + 21),
        (nn.Linear(5, 7, bias=False), (5,), 35),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5), 30 * 4 * 27 + 120),
        (nn.Conv2d(3, 4, 3, padding=1, bias=False), (3, 6, 5), 30 * 4 * 27),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 2, 2), 25 * 4 * 27 + 100),
        (nn.ConvTranspose2d(4, 8, 2, stride=2, groups=4, bias=False), (4, 3, 3), 36 * 8 * 4),
        (nn.BatchNorm2d(3), (3, 4, 4), 96),
        (nn.BatchNorm2d(3, affine=False), (3, 4, 4), 48),
        (nn.ReLU(inplace=True), (3, 4, 4), 96),
        (Function(F.relu), (3, 4, 4), 48),
        (nn.MaxPool2d(2), (3, 4, 4), 96),
        (nn.AdaptiveAvgPool2d(1), (3, 4, 4), 96),
        (nn.Sequential(nn.Sigmoid(), nn.Dropout(), nn.Flatten()), (3, 4, 4), 0),
    ],
)
def test_the_paper_s_counting_by_hand(layer, shape, macs):
    assert count_macs(layer, shape, counting="paper") == macs


# The counts that ptflops 0.7.2.2 (backend "pytorch") gives for these networks; in millions, the paper prints 21.9,
# 133.59 (see the docstring) and 90.66 for the first three.
@pytest.mark.parametrize(
    ("net", "shape", "true", "paper"),
    [
        (vgg11()[0], (3, 32, 32), 21_233_664, 21_922_304),
        (vgg11()[1], (8, 8, 8), 133_239_808, 133_570_570),
        (ReconstructionNet((8, 8, 8), (3, 32, 32)), (8, 8, 8), 54_281_216, 90_664_448),
        (resnet20()[0], (3, 64, 64), 72_155_136, 73_336_832),
        (resnet20()[1], (8, 16, 16), 90_858_496, 91_350_216),
    ],
)
def test_both_countings_of_the_paper_s_networks(net, shape, true, paper):
    assert count_macs(net, shape) == count_macs(net, shape, "true") == true
    assert count_macs(net, shape, "paper") == paper


def test_an_unknown_counting_lists_the_known():
    with pytest.raises(ConfigError, match="unknown counting 'flops'; choose one of true, paper"):
        count_macs(nn.Linear(2, 2), (2,), "flops")


def test_a_layer_that_runs_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), (4,)) == 32
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 20


def test_layers_that_are_called_by_keyword_count():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(input=self.layer(input=x))

    assert count_macs(Named(), (3, 8, 8)) == 36 * 4 * 27
    assert count_macs(Named(), (3, 8, 8), "paper") == 36 * 4 * 27 + 144 + 288


def test_counting_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    count_macs(net, (1, 5, 5))
    for counting in ("true", "paper"):
        with pytest.raises(ConfigError):
            count_macs(net, (3, 5, 5), counting)
    assert net.training
    assert not net[2].training
    assert not any(part._forward_hooks for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_parameters_count_and_buffers_do_not():
    net = nn.BatchNorm2d(3).requires_grad_(False)
    assert count_parameters(net) == 6
