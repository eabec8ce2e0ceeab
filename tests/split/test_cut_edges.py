"""Forwards that a graph could get wrong: each is cut exactly, or refused with a sentence."""

import copy

import pytest
import torch
from split_nets import VisionTransformer, net
from torch import nn
from torch.nn import functional as F

from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel, cuts, split_at

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """`between` is what happens behind `a`; the rest is there to be overridden."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def assert_cut(model, layer="a", x=X):
    """Exact in evaluation mode, and in training mode down to gradients and random numbers."""
    edge, cloud = split_at(model, layer, x)
    for mode in (False, True):
        results = []
        for forward in (model, lambda value: cloud(edge(value))):
            for part in (model, edge, cloud):
                part.train(mode)
            model.zero_grad()
            torch.manual_seed(0)
            out = forward(x)
            out.square().sum().backward()
            results.append([out, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), mode
    return edge, cloud


def test_a_view_of_the_feature_is_changed_in_place():
    class Views(Two):
        def between(self, z):
            z.view(-1).mul_(2)
            z[:, 0] = 0.5
            half, _ = z.chunk(2, dim=0)
            half += 1
            return z

    model = Views().eval()
    edge, cloud = split_at(model, "a", X)
    with torch.no_grad():  # in-place changes of one of several views have no gradient
        feature = edge(X)
        before = feature.clone()
        assert torch.equal(cloud(feature), model(X))
    assert torch.equal(feature, before)


def test_the_input_is_changed_in_place():
    class Inputs(Two):
        def forward(self, x):
            x.sub_(0.5)
            return self.b(self.a(x))

    model = Inputs().eval()
    edge, cloud = split_at(model, "a", X.clone())
    assert torch.equal(cloud(edge(X.clone())), model(X.clone()))


def test_a_feature_that_is_changed_after_it_was_read_elsewhere():
    class Late(Two):
        def forward(self, x):
            early = self.a(x)
            out = self.b(early)
            early.add_(1)
            return out + early

    with pytest.raises(ConfigError, match=r"another tensor crosses there, the output of 'a'"):
        split_at(Late(), "b", X)
    model = Late().eval()
    edge, cloud = split_at(model, "a", X)
    assert torch.equal(cloud(edge(X)), model(X))


def test_what_does_nothing_in_evaluation_is_not_taken_for_its_input():
    class Doubled(Two):
        def between(self, z):
            return z + F.dropout(z, 0.5, self.training)

    class Keep(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5) if self.training else x

    class Modules(Two):
        def __init__(self):
            super().__init__()
            self.keep = Keep()

        def between(self, z):
            return z - 0.5 * self.keep(z)

    assert_cut(Doubled())
    assert_cut(Modules())
    with pytest.raises(ConfigError, match="the output of 'a'"):
        split_at(Modules(), "keep", X)


def test_constants_that_depend_on_the_mode():
    class Scaled(Two):
        def between(self, z):
            return z * (0.5 if self.training else 2.0) + (z.mean() if 0 else 1)

    edge, cloud = assert_cut(Scaled())
    assert not torch.equal(cloud.train()(edge(X)), cloud.eval()(edge(X)))


def test_a_gradient_of_its_own_is_kept():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Rounded(Two):
        def between(self, z):
            return Straight.apply(z)

    assert_cut(Rounded())  # the gradient of rounding would be zero


def test_no_grad_around_trained_layers_is_refused_and_around_frozen_ones_not():
    class Frozen(Two):
        def forward(self, x):
            with torch.no_grad():
                z = self.a(x)
            return self.b(z)

    with pytest.raises(ConfigError, match=r"computes under torch.no_grad \(test_cut_edges.py:\d+\).*requires_grad_"):
        split_at(Frozen(), "b", X)
    model = Frozen()
    model.a.requires_grad_(False)
    assert_cut(model, "b")


def test_tensors_that_are_no_parameters():
    class Constants(Two):
        def __init__(self):
            super().__init__()
            self.plain = torch.tensor(2.0)
            self.register_buffer("kept", torch.tensor(3.0))
            self.register_buffer("passing", torch.tensor(4.0), persistent=False)

        def between(self, z):
            return z * self.plain + self.kept * self.passing * torch.tensor([1.5])

    edge, cloud = assert_cut(Constants())
    assert set(cloud.state_dict()) == {"kept", "b.weight", "b.bias"}
    assert not hasattr(edge, "kept")
    assert cloud.double()(X.double()).dtype == torch.float64


def test_hooks_and_copies():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    edge, cloud = split_at(model, "1", X)
    seen = []
    handle = model[3].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    cloud(edge(X))
    handle.remove()
    assert seen == [4]
    copied = copy.deepcopy(nn.Sequential(edge, cloud))
    assert torch.equal(copied(X), model(X))
    model[0].weight.data.zero_()
    assert torch.equal(cloud(edge(X)), model(X))
    assert not torch.equal(copied(X), model(X))


def test_cutting_leaves_the_model_and_the_random_numbers_alone():
    class Counting(Two):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.register_buffer("calls", torch.zeros(()))

        def between(self, z):
            self.calls += 1
            return F.dropout(self.norm(z), 0.5, self.training)

    model = Counting()
    model.norm.eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    call, apply = nn.Module.__call__, vars(torch.autograd.Function)["apply"]
    split_at(model, "a", X)
    cuts(model, X)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.norm.training
    with pytest.raises(ConfigError, match="does not run on the example input"):
        split_at(model, "a", torch.rand(2, 5, 8, 8))
    assert nn.Module.__call__ is call
    assert vars(torch.autograd.Function)["apply"] is apply
    assert model.training


def test_len_of_a_batch_is_a_plain_number():
    class Length(Two):
        def between(self, z):
            return z + torch.zeros(len(z), 1, 1, 1)

    with pytest.raises(ConfigError, match=r"on a batch of another size: len\(\) in .*take the batch size from x.size"):
        split_at(Length(), "a", X)


def test_values_of_the_data_in_python():
    class Numpy(Two):
        def between(self, z):
            return z * float(z.detach().mean())

    with pytest.raises(ConfigError, match=r"looks at values of the data \(__float__, test_cut_edges.py:\d+\)"):
        split_at(Numpy(), "a", X)

    class Fine(Two):
        def between(self, z):
            steps = torch.linspace(1, 2, 3).tolist()  # the same for every input
            return z * steps[1] if z.dim() == 4 and z.is_contiguous() else z

    assert_cut(Fine())


def test_a_tensor_that_is_passed_behind_the_back():
    class Keeps(nn.Module):
        def forward(self, x):
            self.kept = x.mean((2, 3), keepdim=True)
            return x * 2

    class Hidden(Two):
        def __init__(self):
            super().__init__()
            self.keeps = Keeps()

        def between(self, z):
            return self.keeps(z) + self.keeps.kept

    with pytest.raises(ConfigError, match=r"uses a tensor from inside 'keeps' that it does not return"):
        split_at(Hidden(), "a", X)


def test_several_outputs_behind_the_cut_are_welcome():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            z = self.body(x)
            return {"first": self.first(z), "rest": (self.second(z), None)}

    model, x = Heads().eval(), torch.rand(6, 5)
    edge, cloud = split_at(model, "body", x)
    out, expected = cloud(edge(x)), model(x)
    assert torch.equal(out["first"], expected["first"])
    assert torch.equal(out["rest"][0], expected["rest"][0])
    assert out["rest"][1] is None
    with pytest.raises(ConfigError, match=r"the output of 'body' \(needed by 'second'\)"):
        split_at(model, "first", x)


def test_modules_with_several_results_and_sizes_on_either_side():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 2, 2)

        def forward(self, x):
            x = self.conv(x)
            return x.flatten(2).transpose(1, 2), x.shape[2], x.shape[3]

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix, self.out = Patches(), nn.Linear(6, 6), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            tokens, height, width = self.patches(x)
            return self.out(self.mix(tokens).transpose(1, 2).reshape(x.shape[0], 6, height, width))

    assert_cut(Pyramid(), "mix")
    assert_cut(Pyramid(), "patches.conv")


def test_a_split_transformer_trains_with_noise():
    model, x = net("vit")
    assert isinstance(model, VisionTransformer)
    edge, cloud = split_at(model, "layers.0", x)
    split = SplitModel(edge, Channel(clip_norm=4.0, noise_std=0.1), cloud).train()
    optimizer = torch.optim.SGD(split.parameters(), lr=0.1)
    before = model.layers[0].attention.qkv.weight.detach().clone()
    split(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.layers[0].attention.qkv.weight, before)


def test_a_batch_that_is_none():
    for wrong in (torch.zeros(()), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ConfigError, match=r"example_input has the shape .*; give a batch of at least one input"):
            split_at(nn.Sequential(nn.Conv2d(3, 3, 1)), "0", wrong)
    with pytest.raises(ConfigError, match="the model is a function; give a torch.nn.Module"):
        cuts(lambda x: x, X)


def test_every_input_is_taken_once_or_refused():
    class Scaled(Two):
        def forward(self, x, scale=None):
            z = self.a(x)
            return self.b(z if scale is None else z * scale)

    class Listed(Two):
        def forward(self, *parts):
            return self.b(self.a(parts[0]) * parts[1] if len(parts) > 1 else self.a(parts[0]))

    class Named(Two):
        def forward(self, *, pixels):
            return self.b(self.a(pixels))

    twice = torch.full((4, 1, 1, 1), 2.0)
    for model, example, named, said in (
        (Scaled(), (), None, "example_input is an empty tuple"),
        (Scaled(), {}, None, "example_input is an empty dict"),
        (Scaled(), (X, twice, twice), None, "has 3 parts, but the model's forward names 2 inputs .*x, scale"),
        (Listed(), (X, twice), None, "has 2 parts, but the model's forward names 0 inputs"),
        (Scaled(), (X, twice), {"scale": twice}, "both give scale"),
        (Scaled(), X, {"x": X}, "both give x"),
        (Scaled(), X, 5, "example_kwargs is a int"),
    ):
        with pytest.raises(ConfigError, match=said):
            split_at(model, "a", example, named)
    assert_cut(Listed())
    model = Named()
    edge, cloud = split_at(model, "a", X)  # a forward without places gets it by its name
    assert torch.equal(cloud(edge(X)), model(pixels=X))


def test_what_is_no_layer_s_name_and_no_module_that_runs_python():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    for layer in (None, model[0]):
        with pytest.raises(ConfigError, match="layer is a .*; give the dotted name"):
            split_at(model, layer, X)
    with pytest.raises(ConfigError, match="the model is TorchScript.*give the module it was made of"):
        split_at(torch.jit.trace(model, X), "0", X)


def test_lazy_layers_get_their_shapes():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)).eval()
    edge, cloud = split_at(model, "1", X)
    assert torch.equal(cloud(edge(X)), model(X))
    assert int(model[1].num_batches_tracked) == 0


def test_autocast_inside_a_forward_is_refused_around_the_layer_and_kept_in_a_submodule():
    class Half(Two):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                z = self.a(x)
            return self.b(z.float())

    with pytest.raises(ConfigError, match=r"computes under torch.autocast \(test_cut_edges.py:\d+\).*around the model"):
        split_at(Half(), "a", X)
    assert_cut(nn.Sequential(Half(), nn.Conv2d(3, 3, 1)), "0")
    with torch.autocast("cpu", torch.bfloat16):  # the forward opens none
        edge, cloud = split_at(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), "0", X)
        assert cloud(edge(X)).dtype == torch.bfloat16


def test_an_answer_that_changes_is_called_random_only_where_random_numbers_change_it():
    class Counting(Two):
        calls = 0

        def between(self, z):
            self.calls += 1
            return z * self.calls

    class Seeded(Two):
        def between(self, z):
            return z + torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(3))

    with pytest.raises(ConfigError, match="changes from call to call, with equal random numbers, too"):
        split_at(Counting(), "a", X)
    with pytest.raises(ConfigError, match=r"draws random numbers \(randn in the model's forward .*into a buffer"):
        split_at(Seeded(), "a", X)
