"""Every possible cut of every architecture: the halves are the model, and what the list says of them is true."""

import copy

import pytest
import torch
from split_nets import NETS, net
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import sfumato
from sfumato.errors import ConfigError


@pytest.fixture(scope="module", params=list(NETS))
def case(request):
    """A network, an example, another batch of another size, and all halves."""
    model, example = net(request.param)
    listed = sfumato.cuts(model, example)
    halves = {cut.layer: sfumato.split_at(model, cut.layer, example) for cut in listed if cut.possible}
    other = torch.rand(3, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    return request.param, model, other, listed, halves, example


def test_the_halves_are_the_model_to_the_last_bit(case):
    _, model, x, _, halves, _ = case
    model.eval()
    expected, hooked = model(x), {}
    for layer, (edge, cloud) in halves.items():
        with model.get_submodule(layer).register_forward_hook(lambda m, i, o: hooked.update(o=o.clone())):
            model(x)
        feature = edge.eval()(x)
        assert torch.equal(feature, hooked["o"]), layer
        before = feature.clone()
        assert torch.equal(cloud.eval()(feature), expected), layer
        assert torch.equal(feature, before), layer  # whatever works in place behind the cut
    model.train()


def test_training_the_halves_is_training_the_model(case):
    """Output, gradients, random masks and running statistics are those of the model, bit for bit."""
    _, model, x, _, halves, _ = case
    state = copy.deepcopy(model.state_dict())

    def step(forward):
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(3)
        out = forward(x)
        out.square().sum().backward()
        return [out, *(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]

    model.train()
    expected = step(model)
    for layer, (edge, cloud) in halves.items():
        edge.train()
        cloud.train()
        found = step(lambda x, edge=edge, cloud=cloud: cloud(edge(x)))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), layer
    model.load_state_dict(state)


def test_the_listed_work_is_what_torch_counts(case):
    _, model, x, listed, halves, _ = case
    model.eval()

    def counted(module, value):
        # The kernel that attention has on the CPU is unknown to torch's counter, its plain form is not.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            module(value)
        return counter.get_total_flops()

    whole = counted(model, x)
    for cut in listed:
        if cut.possible:
            edge, _ = halves[cut.layer]
            found = counted(edge.eval(), x)
            assert cut.edge_flops * len(x) == pytest.approx(found, rel=0.01)
            assert cut.share == pytest.approx(found / whole, rel=0.01)
    model.train()


def test_the_listed_feature_and_parameters_are_the_edge_s(case):
    _, _, x, listed, halves, _ = case
    for cut in listed:
        if cut.possible:
            edge, _ = halves[cut.layer]
            feature = edge.eval()(x)
            assert cut.shape == tuple(feature.shape[1:])
            assert cut.dimensions == feature[0].numel()
            assert cut.bytes_on_wire() == len(feature[0].detach().numpy().tobytes())
            assert cut.bytes_on_wire(8) == feature[0].numel()
            assert cut.edge_parameters == sum(p.numel() for p in edge.parameters())
            if cut.bounds is not None:
                low, high = cut.bounds
                driven = edge(1e3 * (x - 0.5)).detach()
                assert low <= float(driven.min())
                assert float(driven.max()) <= high


def test_every_layer_is_listed_and_those_without_a_cut_are_refused(case):
    _, model, _, listed, _, example = case
    names = {name for name, part in model.named_modules() if name and not isinstance(part, nn.ModuleList)}
    assert {cut.layer for cut in listed} == names
    for cut in listed:
        if not cut.possible:
            with pytest.raises(ConfigError) as caught:
                sfumato.split_at(model, cut.layer, example)
            assert str(caught.value).startswith(f"there is no cut at {cut.layer!r}: {cut.obstacle}")


# By hand: a layer can be cut where no sum, no concatenation and no second reader comes later.
POSSIBLE = {
    "cnn": {"0", "1", "2", "3", "4", "5", "6", "7", "8"},
    "resnet": {
        "stem.0", "stem.1", "stem.2", "stem", "layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2", "fc"
    },
    "densenet": {"stem", "transition.0", "transition.1", "transition.2", "transition.3", "transition", "head"},
    "unet": {"stem", "out"},
    "vit": {"patches", "layers.0", "layers.1", "layers.2", "norm", "head"},
    "mlp": {"0", "1", "2", "3", "4", "5"},
    "signal": {"0", "1", "2", "3", "4", "5", "6"},
}  # fmt: skip


def test_the_possible_cuts_are_those_found_by_hand(case):
    name, _, _, listed, _, _ = case
    assert {cut.layer for cut in listed if cut.possible} == POSSIBLE[name]


def test_the_bounds_are_those_of_the_last_operation():
    bounds = {name: {cut.layer: cut.bounds for cut in sfumato.cuts(*net(name))} for name in ("cnn", "mlp", "signal")}
    assert bounds["cnn"]["5"] == (0.0, 1.0)
    assert bounds["mlp"]["1"] == (-1.0, 1.0)
    assert (bounds["signal"]["1"], bounds["signal"]["2"], bounds["signal"]["4"]) == ((0, 6), (0, 6), (-2, 2))
    assert bounds["signal"]["5"] == (-2, 2)  # flattening changes no value
    assert bounds["cnn"]["0"] is bounds["cnn"]["2"] is bounds["mlp"]["4"] is None


def test_the_work_of_a_convolution_and_an_attention_by_hand():
    listed = {cut.layer: cut for cut in sfumato.cuts(*net("vit"))}
    patches = 16 * 16 * 3 * 16  # 16 positions x 16 channels x 3 x 4 x 4
    assert listed["patches"].edge_flops == 2 * patches
    layer = 17 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 17 * 17 * 16
    assert listed["layers.0"].edge_flops == 2 * (patches + layer)
    assert listed["layers.2"].edge_flops == 2 * (patches + 3 * layer)
    assert listed["head"].share == 1.0
