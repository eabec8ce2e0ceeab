"""A split model of anybody's modules written to a folder and read back: the same numbers, and nothing else in it."""

import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import sfumato
from sfumato.attacks.tokens import token_recovery
from sfumato.errors import CheckpointError, ConfigError, StorageError
from sfumato.split import Channel, SplitModel, split_at
from sfumato.split.ranges import range_of
from sfumato.split.recorder import record
from sfumato.split.saved import SPLIT, read_split
from sfumato.torch_utils import evaluating
from sfumato.training import load_trained

SECRET = 0.123456789


class Net(nn.Module):
    """A convolution with batch normalisation, and a decoder that drops values while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.Sigmoid())
        self.cloud = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))


def feature_range(encoder, example):
    with evaluating(encoder):
        recording = record(encoder, example, gradients=False)
    return range_of(recording, recording.answer)


def split_model(**channel):
    torch.manual_seed(0)
    net = Net()
    net.edge[1].running_mean.uniform_(-0.5, 0.5)
    return SplitModel(net.edge, Channel(**({"noise_std": 0.1, "clip_norm": 1.5} | channel)), net.cloud)


def images(count=5):
    return torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = split_model(quantize_bits=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.full((3, 2, 4, 4), SECRET)
    state = torch.get_rng_state()
    (folder / "notes.txt").write_text("mine")
    assert (
        sfumato.save_split(
            model, folder, example_input=x, class_names=("ant", "bee", "cat"), about={"defense": "noise+cem"}
        )
        == folder
    )
    assert model.training
    assert model.edge[1].training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return folder, model.eval()


def test_what_is_read_back_computes_what_the_model_does(saved):
    folder, model = saved
    again = sfumato.load_split(folder)
    assert not again.training
    for count in (1, 2, 5):
        x = images(count)
        with torch.no_grad():
            torch.testing.assert_close(again.features(x), model.features(x), rtol=0, atol=1e-6)
            ours, theirs = (one.outputs(x, torch.Generator().manual_seed(3)) for one in (again, model))
        torch.testing.assert_close(ours.released, theirs.released, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    assert vars(again.channel).keys() == vars(model.channel).keys()
    assert again.channel.extra_repr() == model.channel.extra_repr()


def test_the_folder_says_what_audit_and_export_ask(saved):
    folder, _ = saved
    found = load_trained(folder)
    assert (found.kind, found.classes, found.input_shape, found.classifies) == (
        "saved",
        ("ant", "bee", "cat"),
        (2, 4, 4),
        True,
    )
    assert (found.defense, found.setting, found.config) == ("noise+cem", "σ 0.1", None)
    assert (folder / "notes.txt").read_text() == "mine"
    assert feature_range(found.model.edge, images()) == (0.0, 1.0)
    assert feature_range(found.model.cloud, torch.rand(1, 3, 2, 2)) is None


def test_nothing_of_the_example_or_of_the_source_is_stored(saved):
    folder, _ = saved
    content = b""
    for name in ("edge.pt2", "cloud.pt2"):
        with zipfile.ZipFile(folder / name) as archive:
            content += b"".join(archive.read(entry) for entry in archive.namelist())
    assert np.float32(SECRET).tobytes() not in content
    assert b"test_saved_split" not in content
    assert b'"stack_trace"' not in content


def test_images_are_normalised_by_the_saved_encoder(tmp_path):
    model = split_model().eval()
    mean, std = [0.4, 0.6], [0.2, 0.3]
    sfumato.save_split(model, tmp_path, example_input=images(1), normalize=(mean, std))
    x = images().numpy()
    by_hand = (x - np.array(mean, dtype=np.float32)[:, None, None]) / np.array(std, dtype=np.float32)[:, None, None]
    with torch.no_grad():
        wanted = model.features(torch.from_numpy(by_hand))
        torch.testing.assert_close(sfumato.load_split(tmp_path).features(images()), wanted, rtol=1e-4, atol=1e-5)
    assert read_split(tmp_path).class_names == ("0", "1", "2")


def test_other_shapes_and_regression(tmp_path):
    model = SplitModel(nn.Linear(4, 3), Channel(noise_std=0.1), nn.Sequential(nn.Flatten(), nn.Linear(15, 2)))
    x = torch.rand(2, 5, 4)
    sfumato.save_split(model, tmp_path, example_input=x, task="values")
    found = load_trained(tmp_path)
    assert (found.input_shape, found.classifies) == ((5, 4), False)
    assert feature_range(found.model.edge, x) is None
    with torch.no_grad():
        torch.testing.assert_close(found.model.features(x), model.features(x))


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.end = end

    def forward(self, x):
        return self.end(x).flatten(1)


class SqueezeExcite(nn.Module):
    """Its last registered module is a sigmoid, and what it gives is a product that nothing bounds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())

    def forward(self, x):
        z = self.conv(x)
        return z * self.gate(z)


def changed_through_a_view(x):
    z = torch.sigmoid(x)
    z.view(-1).mul_(10)
    return z


ENDS = [
    (torch.tanh, (-1, 1), True),
    (torch.relu, None, False),
    (lambda x: x.clamp(-2, 3), (-2, 3), True),
    (lambda x: x.clamp(min=0), None, True),
    (lambda x: torch.sigmoid(x) * 10, None, True),
    (lambda x: torch.softmax(x, -1).transpose(1, 2).unsqueeze(1), (0, 1), True),
    (lambda x: nn.functional.avg_pool1d(x.clamp(2, 3), 3, 1, 1), (0, 3), False),  # with the zeros of the padding
    (lambda x: nn.functional.max_pool1d(x.clamp(2, 3), 3, 1, 1), (2, 3), False),
]


@pytest.mark.parametrize(("end", "expected", "exported"), ENDS)
def test_the_range_of_an_encoder_is_that_of_the_operation_that_made_its_output(tmp_path, end, expected, exported):
    model = SplitModel(Ends(end), Channel(noise_std=1.0), nn.Linear(6, 2))
    x = 20 * torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    assert feature_range(model.edge, x) == expected
    if expected is not None:
        values = model.edge(x)
        assert expected[0] <= values.min()
        assert values.max() <= expected[1]
    if exported:
        sfumato.save_split(model, tmp_path, example_input=torch.rand(1, 2, 3))
        assert feature_range(sfumato.load_split(tmp_path).edge, x) == expected


def test_the_last_registered_module_does_not_decide():
    x = 100 * torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    gated = SqueezeExcite()
    assert isinstance(list(gated.modules())[-1], nn.Sigmoid)
    assert gated(x).min().item() < -1
    assert feature_range(gated, x) is None
    assert feature_range(nn.Sequential(gated, nn.Sigmoid()), x) == (0, 1)
    assert feature_range(nn.Sequential(nn.Linear(3, 2), nn.Hardtanh(-3, 2)), x) == (-3, 2)
    assert feature_range(nn.Sequential(nn.Linear(3, 2), nn.ReLU6(inplace=True), nn.Flatten()), x) == (0, 6)
    assert feature_range(Ends(changed_through_a_view), x) is None
    late = nn.Sequential(nn.Sigmoid(), Ends(lambda x: (x.view(-1).mul_(10), x)[1]))
    assert late(x).max().item() > 1
    assert feature_range(late, x) is None


class Masks(nn.Module):
    stochastic = True

    def forward(self, z, generator=None):
        return z * torch.rand(z.shape, generator=generator)


class Chooses(nn.Module):
    def forward(self, x):
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


class Random(nn.Module):
    def forward(self, x):
        return x.flatten(1) + torch.rand_like(x.flatten(1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": nn.Linear(2, 2)}, r"model is a Linear; save a sfumato.SplitModel"),
        ({"example_input": torch.zeros(0, 2, 4, 4)}, "example_input must be a batch"),
        ({"example_input": torch.zeros(1, 5, 4, 4)}, "the model does not run on the example input"),
        ({"class_names": ["a"]}, "1 class_names for 3 outputs; give one text for each"),
        ({"task": "regress"}, "task is 'regress'; choose one of classes, values"),
        ({"normalize": ([0.5], [0.0])}, "as many positive standard deviations"),
        ({"normalize": ([0.5] * 3, [1.0] * 3)}, r"normalize must hold 2 \(or 1\)"),
        ({"normalize": 3}, r"normalize is no \(mean, std\)"),
        ({"about": {"x": object()}}, "about holds something that JSON does not know"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(tmp_path, change, match):
    given = {"model": split_model(), "example_input": images(2)} | change
    with pytest.raises(ConfigError, match=match) as caught:
        sfumato.save_split(given.pop("model"), tmp_path / "out", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / SPLIT).exists()


@pytest.mark.parametrize(
    ("edge", "match"),
    [
        (Chooses(), "the encoder cannot be recorded by torch.export for inputs .* its forward must not depend on"),
        (Random(), "the recorded encoder differs from the module by .* random in evaluation mode"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused_and_the_old_folder_stays(tmp_path, edge, match):
    plain = SplitModel(nn.Flatten(), Channel(noise_std=0.1), nn.Linear(32, 2))
    sfumato.save_split(plain, tmp_path, example_input=images(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=match):
        sfumato.save_split(SplitModel(edge, Channel(), nn.Linear(32, 2)), tmp_path, example_input=images(2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_random_transforms_and_unwritable_places_are_refused(tmp_path):
    model = split_model(transforms=[Masks()])
    with pytest.raises(ConfigError, match="the channel's Masks draws random numbers"):
        sfumato.save_split(model, tmp_path, example_input=images(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another folder"):
        sfumato.save_split(split_model(), tmp_path / "file", example_input=images(1))


def test_damaged_folders_get_a_sentence(saved, tmp_path):
    folder, _ = saved
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    good = json.loads((tmp_path / SPLIT).read_text())

    def refused(match, **changes):
        (tmp_path / SPLIT).write_text(json.dumps(good | changes))
        with pytest.raises(CheckpointError, match=match):
            sfumato.load_split(tmp_path)

    refused("has format 2, this version reads up to 1; upgrade", format=2)
    refused("is no description of a split model", format=None)
    refused("is damaged", channel={})
    refused("noise_std is -1", channel=good["channel"] | {"noise_std": -1})
    refused("is damaged", channel=good["channel"] | {"noise_std": 1e308})
    refused("is damaged", task="other")
    refused("is damaged", input={"shape": None})
    for wrong in (None, -1, float("inf"), "x", [1], {"a": 1}):
        refused("is damaged", input=good["input"] | {"shape": wrong if wrong != [1] else [float("inf")]})
        refused("is damaged", channel=wrong)
        refused("is damaged", feature=wrong)
        refused("is damaged|is missing", files=wrong)
    refused("is damaged", input=good["input"] | {"tokens": float("inf")})
    (tmp_path / "edge.pt2").write_bytes((tmp_path / "edge.pt2").read_bytes()[:-1])
    refused("edge.pt2 is missing or not the file that split.json describes")
    (tmp_path / SPLIT).write_text("[1]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        sfumato.load_split(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no saved split model \(no split.json\)"):
        sfumato.load_split(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no trained split model \(no config.json and no split.json\)"):
        load_trained(tmp_path / "nowhere")


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(30, 6), nn.Linear(6, 6)

    def forward(self, ids):
        return torch.sigmoid(self.mix(self.table(ids)))


def test_a_model_of_texts_is_saved_read_and_its_tokens_recovered(tmp_path):
    torch.manual_seed(0)
    model = SplitModel(Reads(), Channel(noise_std=0.01), nn.Sequential(nn.Flatten(), nn.Linear(30, 2))).eval()
    ids = torch.randint(30, (80, 5))
    found = read_split(sfumato.save_split(model, tmp_path, example_input=ids[:2]))
    assert (found.tokens, found.input_shape) == (30, (5,))
    torch.testing.assert_close(found.model.features(ids), model.features(ids))
    assert token_recovery(found.model, ids[:60], ids[60:]).recovered > 0.9


def test_what_mixes_the_samples_is_said_after_a_test(tmp_path):
    class Mixes(nn.Module):
        def forward(self, x):
            return x.flatten(1) - (x.flatten(1).mean(0) if torch.compiler.is_exporting() else x.flatten(1).max(0)[0])

    model = SplitModel(Mixes(), Channel(), nn.Linear(32, 2))
    with pytest.raises(
        ConfigError, match="the recorded encoder differs from the module by .* mixes the rows of a batch"
    ):
        sfumato.save_split(model, tmp_path, example_input=images(2))


class Masked(nn.Module):
    """Two layers of attention that both look only where a mask (N, 1, L, L) lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids, attention_mask):
        x = self.embed(ids)[:, None]
        x = self.first(scaled_dot_product_attention(x, x, x, attention_mask))
        return self.second(scaled_dot_product_attention(x, x, x, attention_mask)).mean((1, 2))


def test_a_saved_split_takes_the_mask_by_its_name_and_audit_and_export_say_that_they_do_not(tmp_path):
    ids = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(0))
    full = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])[:, None, None, :].bool().expand(-1, -1, 7, -1)
    edge, cloud = split_at(Masked().eval(), "first", ids[:2], {"attention_mask": full[:2]})
    split = SplitModel(edge, Channel(), cloud).eval()
    with pytest.raises(ConfigError, match=r"takes attention_mask beside its input; give an example .*example_kwargs"):
        sfumato.save_split(split, tmp_path, example_input=ids)
    with pytest.raises(ConfigError, match="must be a tensor with a row for each of the 3 rows"):
        sfumato.save_split(split, tmp_path, example_input=ids, example_kwargs={"attention_mask": full[:2]})
    sfumato.save_split(split, tmp_path, example_input=ids[:1], example_kwargs={"attention_mask": full[:1]})
    again = sfumato.load_split(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(ids, attention_mask=full), split(ids, attention_mask=full))
        assert not torch.allclose(again(ids, attention_mask=full[[0, 0, 0]]), split(ids, attention_mask=full))
    with pytest.raises(ConfigError, match="takes attention_mask beside its input and was given nothing"):
        again(ids)
    with pytest.raises(ConfigError, match="attention_mask beside its input, and audit and export hand over one input"):
        load_trained(tmp_path)


def test_names_are_looked_up_through_what_torch_compile_puts_around_a_model():
    net, x = Net().eval(), images()
    edge, cloud = split_at(torch.compile(nn.Sequential(net.edge, net.cloud)), "_orig_mod.0", x)
    assert torch.equal(cloud(edge(x)), net.cloud(net.edge(x)))
