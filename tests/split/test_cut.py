import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.errors import ConfigError
from sfumato.models import count_parameters, vgg11
from sfumato.split import Channel, SplitModel, cuts, split_at


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x):
        shortcut = x if self.down is None else self.down(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + shortcut
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16))
        self.fc = nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Linear(7, 7)

    def forward(self, x, return_features=None):
        x = F.relu(self.bn1(self.conv1(x * self.scale)))
        x = self.layer2(self.layer1(x))
        x = F.adaptive_avg_pool2d(x, 1)
        x = torch.flatten(x, 1)
        if return_features is not None:
            return x
        return self.fc(F.dropout(x, 0.5, self.training)) * self.scale


def resnet():
    torch.manual_seed(0)
    return ResNet()


X = torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize(
    "layer",
    ["conv1", "bn1", "layer1.0", "layer1.0.relu", "layer1", "layer1.1.relu", "layer2.0", "layer2", "fc"],
)
def test_the_halves_compute_what_the_model_computes(layer):
    model = resnet().eval()
    edge, cloud = split_at(model, layer, X)
    feature = edge(X)
    with torch.no_grad():
        assert torch.equal(cloud(feature.clone()), model(X))
    hooked = {}
    model.get_submodule(layer).register_forward_hook(lambda m, i, o: hooked.update(o=o.clone()))
    model(X)
    assert torch.equal(edge(X), hooked["o"])


def test_halves_share_parameters_and_hold_only_their_own():
    model = resnet()
    edge, cloud = split_at(model, "layer1", X)
    names, own = set(model.state_dict()), dict(model.named_parameters())
    for half in (edge, cloud):
        assert set(half.state_dict()) <= names
        assert all(value is own[name] for name, value in half.named_parameters())
    on_edge, in_cloud = set(edge.state_dict()), set(cloud.state_dict())
    assert on_edge & in_cloud == {"scale"}  # used on both sides
    assert not any(name.startswith(("layer2", "fc", "unused")) for name in on_edge)
    assert not any(name.startswith(("conv1", "layer1", "unused")) for name in in_cloud)
    assert on_edge | in_cloud == {name for name in names if not name.startswith("unused")}
    assert count_parameters(edge) == 3 * 8 * 9 + 8 + 16 + 2 * (2 * 8 * 8 * 9 + 32) + 1


def test_a_parameter_that_is_read_early_and_used_late_is_not_on_the_edge():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.late = nn.Conv2d(3, 3, 1), nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            factor = self.late.exp()
            return self.a(x) * factor

    edge, cloud = split_at(Early(), "a", X)
    assert set(edge.state_dict()) == {"a.weight", "a.bias"}
    assert set(cloud.state_dict()) == {"late"}


def test_modes_still_work_on_the_halves_and_the_model_keeps_its_own():
    model = resnet()
    model.bn1.eval()
    edge, cloud = split_at(model, "layer1", X)
    assert model.training
    assert edge.training
    assert cloud.training
    assert not model.bn1.training
    z = edge(X).detach()
    assert not torch.equal(cloud.train()(z), cloud(z))  # the functional dropout draws anew
    assert torch.equal(cloud.eval()(z), cloud(z))
    assert torch.equal(split_at(resnet().eval(), "layer1", X)[1](z), split_at(resnet().eval(), "layer1", X)[1](z))


def test_training_the_halves_trains_the_model():
    model = resnet()
    split = SplitModel(*_with_channel(split_at(model, "layer1", X)))
    before = model.layer1[0].conv1.weight.detach().clone()
    optimizer = torch.optim.SGD(split.parameters(), lr=0.1)
    split(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.layer1[0].conv1.weight, before)


def _with_channel(halves):
    return halves[0], Channel(clip_norm=5.0, noise_std=0.1), halves[1]


def test_an_in_place_layer_behind_the_cut_leaves_the_release_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()).eval()
    edge, cloud = split_at(model, "1", X)
    out = SplitModel(edge, Channel(), cloud).outputs(X)
    assert float(out.released.detach().min()) < 0
    assert torch.equal(out.logits, model(X))


def test_cutting_the_library_s_own_network_inside_its_head():
    edge, cloud = vgg11(image_shape=(3, 16, 16))
    model = nn.Sequential(edge, cloud).eval()
    front, back = split_at(model, "1.pool4", torch.rand(2, 3, 16, 16))
    assert count_parameters(front) + count_parameters(back) == 9_774_994
    assert front(torch.rand(1, 3, 16, 16)).shape == (1, 256, 2, 2)
    assert "1.conv4.weight" in front.state_dict()
    assert "1.conv5.weight" in back.state_dict()


def test_halves_copy_and_take_other_batch_sizes():
    model = resnet().eval()
    edge, cloud = (copy.deepcopy(half) for half in split_at(model, "layer2.0", X))
    big = torch.rand(9, 3, 8, 8)
    assert torch.allclose(cloud(edge(big)), model(big), atol=1e-6)
    assert edge.conv1.weight is not model.conv1.weight


def test_modules_off_the_cut_may_hold_any_python():
    class Wild(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum().item() > 0 else x - len(x)

    model = nn.Sequential(Wild(), nn.Conv2d(3, 2, 1), nn.Sequential(Wild(), nn.Flatten())).eval()
    edge, cloud = split_at(model, "1", X)
    assert torch.equal(cloud(edge(X)), model(X))


def test_a_skip_connection_is_named_and_another_layer_suggested():
    with pytest.raises(
        ConfigError,
        match=r"there is no cut at 'layer1\.1\.conv1': another tensor crosses there, the output of 'layer1\.0' "
        r"\(needed by 'layer1\.1', test_cut\.py:\d+\); cut at 'layer1\.0' before it or 'layer1' behind it instead$",
    ):
        split_at(resnet(), "layer1.1.conv1", X)


def test_the_input_itself_may_be_what_crosses():
    class Reuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, image):
            return self.b(self.a(image) + image)

    with pytest.raises(ConfigError, match=r"the model's input 'image' \(.*\); cut at 'b' behind it instead"):
        split_at(Reuse(), "a", X)


def test_sizes_that_are_read_early_are_taken_from_the_feature():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Linear(192, 2)

        def forward(self, x):
            n, c, h, w = x.shape
            pairs = x.size(0) * 2
            places = torch.arange(n, device=x.device)[:, None]
            return self.b(self.a(x).reshape(pairs, -1).view(n, c * h * w)) + places

    model = Early().eval()
    edge, cloud = split_at(model, "a", X)
    for batch in (X, X[:1], torch.rand(9, 3, 8, 8)):
        assert torch.equal(cloud(edge(batch)), model(batch))
    moved = cloud.to("meta")(torch.empty(2, 3, 8, 8, device="meta"))
    assert moved.shape == (2, 2)


def test_unknown_layers_come_with_near_names():
    with pytest.raises(ConfigError, match=r"ResNet has no layer 'layer1\.0\.con1'; did you mean 'layer1\.0\.conv1'"):
        split_at(resnet(), "layer1.0.con1", X)
    with pytest.raises(ConfigError, match=r"has no layer ''; its layers are 'conv1', 'bn1', 'layer1'"):
        split_at(resnet(), "", X)


def test_a_layer_has_to_run_exactly_once():
    with pytest.raises(ConfigError, match="at 'unused': the forward calls it never"):
        split_at(resnet(), "unused", X)
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared)
    with pytest.raises(ConfigError, match="at '1': the forward calls it 2 times"):
        split_at(model, "1", X)


def test_a_forward_that_cannot_be_recorded():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(
        ConfigError,
        match=(
            r"forward of the model looks at values of the data \(__bool__, test_cut\.py:\d+\).*"
            r"move that into a submodule.*pass them to SplitModel$"
        ),
    ):
        split_at(Branch(), "a", X)


class Modal(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.b(self.a(x)) if self.training else self.a(x)


def test_other_operations_in_training_than_in_evaluation():
    with pytest.raises(ConfigError, match="other operations in training than in evaluation"):
        split_at(Modal(), "a", X)


def test_two_required_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Bilinear(2, 2, 2)

        def forward(self, left, right):
            return self.a(left, right)

    with pytest.raises(
        ConfigError, match=r"takes 2 inputs \(left, right\), of which one is protected; give the others"
    ):
        split_at(Two(), "a", X)
    with pytest.raises(ConfigError, match=r"'right' has the shape \(3, 2\); give one row for each of the 2 rows"):
        split_at(Two(), "a", torch.rand(2, 2), {"right": torch.rand(3, 2)})
    with pytest.raises(ConfigError, match="'right' is a object; give a tensor or a plain value"):
        split_at(Two(), "a", torch.rand(2, 2), {"right": object()})


class Recurrent(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.gru, self.out, self.both = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2), both

    def forward(self, x):
        outputs, state = self.gru(x)
        return self.out(outputs + state[0][:, None] if self.both else outputs)


def test_of_several_outputs_the_one_that_is_used_crosses():
    model, x, other = Recurrent(both=False).eval(), torch.rand(2, 5, 8), torch.rand(4, 5, 8)
    edge, cloud = split_at(model, "gru", x)
    assert edge(other).shape == (4, 5, 8)
    assert torch.equal(cloud(edge(other)), model(other))
    assert next(cut for cut in cuts(model, x) if cut.layer == "gru").shape == (5, 8)
    sentence = "at 'gru': it gives a tuple of which 2 tensors are used, and only one can cross; cut at 'out' behind it"
    with pytest.raises(ConfigError, match=sentence):
        split_at(Recurrent(both=True), "gru", x)


def test_a_model_that_is_random_in_evaluation_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return F.dropout(self.a(x), 0.5, training=True)

    with pytest.raises(ConfigError, match=r"random in evaluation mode \(dropout in the model's forward.*self.training"):
        split_at(Noisy(), "a", X)


def test_an_example_that_the_model_does_not_take():
    with pytest.raises(ConfigError, match="does not run on the example input"):
        split_at(resnet(), "layer1", torch.rand(2, 5, 8, 8))
    with pytest.raises(ConfigError, match="example_input is a dict"):
        split_at(resnet(), "layer1", [{"x": X}])


def test_in_place_methods_without_a_result_are_kept():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = x * 1
            x.add_(1)
            x = self.a(x)
            x.mul_(2)
            return self.b(x)

    model = InPlace().eval()
    edge, cloud = split_at(model, "a", X)
    assert torch.equal(cloud(edge(X)), model(X))


@dataclass
class Answer:
    hidden: torch.Tensor
    logits: torch.Tensor


class Tupled(NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


class Recorded(nn.Module):
    """Answers with a record of its own class."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        hidden = self.body(x).sigmoid()
        return self.kind(hidden, self.head(hidden))


@pytest.mark.parametrize("kind", [Answer, Tupled])
def test_of_a_record_of_any_class_the_cloud_gives_the_logits_or_the_part_that_is_named(kind):
    model, x = Recorded(kind).eval(), torch.rand(5, 4)
    for part in (None, "hidden"):
        edge, cloud = split_at(model, "body", x[:2], answer=part)
        assert torch.equal(cloud(edge(x)), getattr(model(x), part or "logits"))
    with pytest.raises(ConfigError, match="has no part 'loss'; choose one of .*'hidden', 'logits'"):
        split_at(model, "body", x, answer="loss")


def test_a_mapping_gives_inputs_by_the_names_that_the_forward_has():
    class Batched(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, batch):
            return self.body(batch["pixels"])

    with pytest.raises(ConfigError, match="no input 'pixels', it takes batch: .* wrap the model in a module whose"):
        split_at(Batched(), "body", {"pixels": torch.rand(2, 4)})
