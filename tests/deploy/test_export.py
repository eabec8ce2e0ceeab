"""Bundles compute what PyTorch does, for every network and defence; what cannot be exported safely is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sfumato import defenses, models
from sfumato.defenses import Site
from sfumato.deploy import EdgeClient, ExportConfig, Manifest, export_bundle
from sfumato.deploy.export import _levels
from sfumato.deploy.graph import check_graph
from sfumato.deploy.halves import EncoderHalf, to_onnx
from sfumato.deploy.release import Release
from sfumato.errors import BundleError, ConfigError, SfumatoWarning
from sfumato.split import Channel, SplitModel

CLASSES = ("a", "b", "c")
SMALL = {"ressfl": {"width": 4, "blocks": 0}, "patrol": {"width": 4, "blocks": 0, "stem": 3}}


def split_model(network="digits", shape=(1, 8, 8), channel=None, chosen=(), **options):
    torch.manual_seed(0)
    for one in chosen:
        options |= one.model_options()
    edge, cloud = models.build(
        network, cut=models.default_cut(network), num_classes=len(CLASSES), image_shape=shape, bottleneck=4, **options
    )
    transforms = [module for one in chosen if (module := one.transform()) is not None]
    model = SplitModel(edge, channel or Channel(noise_std=0.1, quantize_bits=8, transforms=transforms), cloud)
    for one in chosen:
        one.attach(Site(model.feature_shape(shape), shape, len(CLASSES)))
    for part in model.modules():  # as after training: statistics that are not 0 and 1
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model.eval()


def exported(folder, model, shape=(1, 8, 8), classes=CLASSES, audit=None, **settings):
    settings = {"name": "model", **settings}
    return export_bundle(model, folder, ExportConfig(**settings), classes=classes, image_shape=shape, audit=audit)


@pytest.fixture(scope="module")
def model():
    return split_model(channel=Channel(noise_std=0.1, quantize_bits=8, clip_norm=3.0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, model):
    return exported(tmp_path_factory.mktemp("export") / "bundle", model)


def session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


def values_of(wire, levels):
    return wire.astype(np.float32) * np.float32(levels.width) + np.float32(levels.low)


def run_as_device_and_server(folder, images, noise):
    manifest = Manifest.load(folder)
    (feature,) = session(folder, "encoder.onnx").run(None, {"image": images})
    wire = Release(manifest)(feature, noise.astype(np.float64))
    (logits,) = session(folder, "decoder.onnx").run(None, {"feature": wire})
    return wire, logits


def as_in_training(model, images, seed=5):
    """The split model's own release and logits, and the numbers that it drew for them."""
    images = torch.from_numpy(images)
    with torch.no_grad():
        out = model.outputs(images, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        uniforms = [torch.rand(out.features.shape, generator=generator) for _ in model.channel.stochastic_transforms]
        noise = torch.randn(out.features.shape, generator=generator)
    return out, noise.numpy(), [one.numpy() for one in uniforms]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_device_and_server_together_are_the_split_model(bundle, model, seed):
    """Clip, noise and levels of the device, for one image as it does them, against the channel of the training."""
    images = np.random.default_rng(seed).random((1, 1, 8, 8), np.float32)
    out, noise, _ = as_in_training(model, images)
    assert torch.linalg.vector_norm(out.features) == pytest.approx(3.0)  # the clip acts
    wire, logits = run_as_device_and_server(bundle.folder, images, noise)
    assert wire.dtype == np.uint8
    # Equal levels but for values that float rounding puts on the other side of a half.
    levels = bundle.manifest.quantization
    difference = np.abs(values_of(wire, levels) - out.released.numpy())
    assert (difference > 1e-5).mean() < 0.01
    assert difference.max() < 1.01 * (levels.high - levels.low) / 255
    if difference.max() < 1e-5:
        assert np.abs(logits - out.logits.numpy()).max() < 1e-5


@pytest.mark.parametrize("network", ["vgg11", "resnet20"])
def test_the_networks_of_the_paper(tmp_path, network):
    shape = (3, 16, 16)
    model = split_model(network, shape, Channel(noise_std=0.05))
    done = exported(tmp_path / "bundle", model, shape, floats=True)
    assert done.manifest.feature.range == (0.0, 1.0)
    assert done.parity.feature < 1e-5
    assert done.parity.logits < 1e-5
    images = np.random.default_rng(1).random((1, *shape), np.float32)
    out, noise, _ = as_in_training(model, images)
    wire, logits = run_as_device_and_server(done.folder, images, noise)
    assert wire.dtype == np.float32
    assert np.abs(wire - out.released.numpy()).max() < 0.05 / 512 + 1e-6  # half a step of the grid
    assert np.abs(logits - out.logits.numpy()).max() < 1e-2
    for name in ("encoder.onnx", "decoder.onnx"):
        operators = [node.op_type for node in onnx.load(done.folder / name).graph.node]
        assert "BatchNormalization" not in operators
        assert "Conv" in operators


OWN = [name for name in defenses.names() if defenses.version(name) is None]


def check_encoder(model, running, uniform_names=()):
    """An exported encoder, with noise and levels of numpy, against what the split model releases for equal numbers."""
    images = np.random.default_rng(2).random((3, 1, 8, 8), np.float32)
    out, noise, uniforms = as_in_training(model, images)
    (feature,) = running.run(None, {"image": images, **dict(zip(uniform_names, uniforms, strict=True))})
    levels = model.channel.quantization_range
    width = (levels[1] - levels[0]) / 255
    feature = feature + np.float32(model.channel.noise_std) * noise
    released = np.clip(np.rint((feature - np.float32(levels[0])) / np.float32(width)), 0, 255) * width + levels[0]
    assert (np.abs(released - out.released.numpy()) > 1e-5).mean() < 0.01


@pytest.mark.parametrize("name", [name for name in OWN if name != "dropout"])
def test_the_encoder_of_every_defence(name):
    defense = defenses.build(name, **SMALL.get(name, {}))
    model = split_model(chosen=[defense])
    half = EncoderHalf(model).eval()
    if not (defense.changes_released_features or defense.changes_architecture):
        assert repr(half) == repr(EncoderHalf(split_model()))  # the plain encoder, which other tests export
        return
    assert not half.masks
    check_encoder(model, onnxruntime.InferenceSession(to_onnx(half, [torch.rand(2, 1, 8, 8)], ["image"], "feature")))


def test_dropout_in_a_bundle_and_on_the_device(tmp_path):
    """Its random mask becomes an input; with it, the encoder does what it did in training."""
    model = split_model(chosen=[defenses.build("dropout", rate=0.5)])
    done = exported(tmp_path / "bundle", model)
    assert done.manifest.noise.uniforms == ("uniform0",)
    check_encoder(model, session(done.folder, "encoder.onnx"), ["uniform0"])
    image = np.full((8, 8), 128, np.uint8)
    with EdgeClient(done.folder, device_key=bytes(range(32))) as client:
        wire = client.release([image])
    values = values_of(wire, done.manifest.quantization)
    with torch.no_grad():
        z_hat = model.features(torch.full((1, 1, 8, 8), 128 / 255)).numpy()
    dropped = np.abs(values) < np.abs(values - z_hat)  # z_hat is near 0.5, the noise 0.1
    assert 0.2 < dropped.mean() < 0.8


def test_a_random_transform_without_explicit_numbers_is_refused(tmp_path):
    class Shuffle(nn.Module):
        stochastic = True

        def forward(self, feature, generator=None):
            return feature * torch.rand(feature.shape, generator=generator)

    model = split_model(channel=Channel(noise_std=0.1, transforms=[Shuffle()]))
    with pytest.raises(ConfigError, match=r"Shuffle draws random numbers .* with_uniform"):
        exported(tmp_path / "bundle", model)
    assert not (tmp_path / "bundle").exists()


def test_a_network_that_draws_random_numbers_is_refused(tmp_path):
    class Noisy(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x + torch.randn_like(x))

    model = split_model()
    model.edge = nn.Sequential(model.edge, Noisy(), nn.Sigmoid())
    with pytest.raises((BundleError, ConfigError), match=r"draws random numbers itself|depends on the other images"):
        exported(tmp_path / "bundle", model.eval())
    assert list(tmp_path.iterdir()) == []
    data = to_onnx(nn.Dropout(0.5), (torch.rand(2, 3),), ("feature",), "logits")  # in evaluation, where it does nothing
    check_graph(data, "decoder.onnx")


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"noise_std": 0.0}, {}, "adds no noise"),
        ({}, {"name": "a/b"}, "the name 'a/b'"),
        ({}, {"version": 0}, "version is 0"),
        ({}, {"reveal": "top_k"}, "top_k is None"),
        ({}, {"reveal": "top_k", "top_k": 4}, "top_k 4"),
        ({}, {"floats": True, "quantize_bits": 8}, "exclude each other"),
        ({}, {"top_k": 2}, "reveal is logits and top_k is 2"),
        ({}, {"quantize_bits": 17}, "quantize_bits is 17"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, settings, said):
    model = split_model(channel=Channel(**({"noise_std": 0.1} | changes)))
    with pytest.raises((BundleError, ConfigError), match=said):
        exported(tmp_path / "bundle", model, **settings)
    assert not (tmp_path / "bundle").exists()


class Shifted(nn.Module):
    """What it gives has no bound that the last operation would tell."""

    def forward(self, x):
        return torch.sigmoid(x.flatten(1)) + x.flatten(1)


SIGMOID = nn.Sequential(nn.Flatten(), nn.Sigmoid())


def small(edge=SIGMOID, cloud=None):
    return SplitModel(edge, Channel(noise_std=0.1), cloud or nn.Linear(64, 3)).eval()


UNIT = (0.0, 1.0)  # the range of a sigmoid; `test_graph` finds it in exported networks


@pytest.mark.parametrize(
    ("limits", "channel", "settings", "levels"),
    [
        (UNIT, {}, {}, (8, -0.4, 1.4)),
        (UNIT, {}, {"quantize_bits": 3}, (3, -0.4, 1.4)),
        (UNIT, {}, {"floats": True}, None),
        (UNIT, {"quantize_bits": 5, "low": -1.0, "high": 2.0}, {}, (5, -1.4, 2.4)),
        (UNIT, {"clip_norm": 0.5}, {}, (8, -0.4, 0.9)),
        ((-1.0, 1.0), {}, {}, (8, -1.4, 1.4)),
        (None, {"clip_norm": 3.0}, {}, (8, -3.4, 3.4)),
        (None, {"quantize_bits": 4}, {}, (4, -0.4, 1.4)),
        (None, {}, {"unbounded": True, "floats": True}, None),
    ],
)
def test_levels_are_the_default_wherever_a_range_is_known(limits, channel, settings, levels):
    found = _levels(Channel(**({"noise_std": 0.1} | channel)), ExportConfig("m", **settings), limits)
    assert (None if found is None else (found.bits, found.low, found.high)) == (
        None if levels is None else pytest.approx(levels)
    )


def test_a_feature_that_nothing_bounds_is_refused_or_warned_of(tmp_path):
    with pytest.raises(ConfigError, match="outgrow any noise"):
        exported(tmp_path / "bundle", small(Shifted()))
    open_channel = Channel(noise_std=0.1)
    with pytest.warns(SfumatoWarning, match="range of this feature is unknown, so it is sent as floats"):
        assert _levels(open_channel, ExportConfig("m", unbounded=True), None) is None
    with pytest.raises(ConfigError, match="cannot be quantised after training"):
        _levels(open_channel, ExportConfig("m", unbounded=True, quantize_bits=8), None)
    with pytest.warns(SfumatoWarning, match="levels are 0.004 apart, more than the noise of 0.001"):
        _levels(Channel(noise_std=0.001), ExportConfig("m"), UNIT)
    with pytest.raises(ConfigError, match=r"the levels .* are none; train with another range"):
        _levels(Channel(noise_std=1e-9), ExportConfig("m"), (1.0, 1.0 + 1e-9))


def test_the_caller_s_model_stays_as_it_is(tmp_path):
    """In training mode, with a frozen layer, in float64; its statistics are not moved by the exporter's images."""
    transform = nn.BatchNorm1d(64)
    edge = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), SIGMOID)
    model = SplitModel(edge, Channel(noise_std=0.1, clip_norm=9.0, transforms=[transform]), nn.Linear(64, 3)).double()
    model.train()
    edge[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    exported(tmp_path / "bundle", model)
    assert [part.training for part in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def test_less_noise_than_was_audited_is_refused(tmp_path):
    audit = {"sha256": "0" * 64, "target": "t", "channel": {"noise_std": 0.2}, "headline": "h"}
    with pytest.raises(BundleError, match="deviation 0.1, and its audit was made with 0.2"):
        exported(tmp_path / "bundle", small(), audit=audit)


class Attends(nn.Module):
    """Takes the batch for the sequence: batch_first is missing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)

    def forward(self, z):
        return self.layer(z.reshape(-1, 4, 16)).flatten(1)[:, :3]


class Centres(nn.Module):
    def forward(self, z):
        return (z - z.mean(0, keepdim=True))[:, :3]


class Ranks(nn.Module):
    """A row's place in its batch: no row alone shows it, another order does."""

    def forward(self, z):
        return z[:, :3] + torch.arange(len(z))[:, None]


@pytest.mark.parametrize("mixing", [Attends, Centres, Ranks], ids=lambda kind: kind.__name__)
def test_rows_that_see_one_another_are_refused(tmp_path, mixing):
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="the decoder's answer of one image depends on the other images"):
        exported(tmp_path / "bundle", small(cloud=mixing()))
    edge = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), SIGMOID)
    with pytest.raises(ConfigError, match="the encoder's feature of one image depends on the other images"):
        exported(tmp_path / "bundle", small(edge))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names", [("a", "b", "a"), ("", "b", "c"), ("a\nb", "b", "c"), ("a\0", "b", "c"), ("caf\udce9", "b", "c")]
)
def test_class_names_that_are_none_or_not_distinct(tmp_path, names):
    with pytest.raises(ConfigError, match="cannot be described"):
        exported(tmp_path / "bundle", small(), classes=names)


def test_a_network_whose_export_is_not_faithful_is_refused(tmp_path, model, bundle, monkeypatch):
    """The comparison is on the bytes that are written: change a weight in them, and the export fails."""
    from sfumato.deploy import export

    whole = onnx.load(bundle.folder / "encoder.onnx")
    weight = next(one for one in whole.graph.initializer if len(one.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) + np.float32(1e-3)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    files = [whole.SerializeToString(), (bundle.folder / "decoder.onnx").read_bytes()]
    monkeypatch.setattr(export, "to_onnx", lambda *_: files.pop(0))
    with pytest.raises(BundleError, match=r"differs from PyTorch's by .* in the feature"):
        exported(tmp_path / "bundle", model)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_builders_machine_is_in_the_files(bundle):
    for name in ("encoder.onnx", "decoder.onnx"):
        data = (bundle.folder / name).read_bytes()
        for word in (b"site-packages", b'File "', str(Path.cwd()).encode(), b"sfumato.models", sys.prefix.encode()):
            assert word not in data


def test_from_a_run_to_an_answer_on_the_command_line(tmp_path, capsys):
    from PIL import Image

    from sfumato import data
    from sfumato.cli.main import main

    run, out, key = tmp_path / "run", tmp_path / "bundle", tmp_path / "key.pem"
    train = ["train", "--data", "digits", "--epochs", "1", "--limit", "200", "--width", "4", "--device", "cpu"]
    assert main([*train, "--run", str(run)]) == 0
    export = ["export", str(run), "--out", str(out), "--quantize-bits", "6", "--json", str(tmp_path / "e.json")]
    assert main([*export, "--new-key", str(key), "--sign", str(key)]) == 0
    told = json.loads((tmp_path / "e.json").read_text())
    assert told["manifest"]["training"]["accuracy"] == json.loads((run / "result.json").read_text())["accuracy"]
    assert told["manifest"]["feature"]["datatype"] == "UINT8"
    assert told["parity"]["images"] == 72
    capsys.readouterr()
    assert main(["verify", str(out), "--key", f"{key}.pub"]) == 0
    assert f"digests agree, signed by {told['signed_by']}" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    assert "who made the bundle was not checked" in capsys.readouterr().out
    image = tmp_path / "digit.png"
    test = data.load("digits").test
    Image.fromarray(test.images[0, 0].numpy()).save(image)
    query = ["query", str(out), str(image), "--device-key", str(tmp_path / "dk"), "--json", str(tmp_path / "q.json")]
    assert main([*query, "--offline"]) == 0
    (answer,) = json.loads((tmp_path / "q.json").read_text())["answers"]
    with EdgeClient(out, device_key=tmp_path / "dk") as client:
        assert client.predict(test.images[0, 0].numpy()).probabilities == answer["probabilities"]
    capsys.readouterr()
    assert main(query) == 2
    assert "say whom to ask" in capsys.readouterr().err
    (out / "triton" / "run" / "1" / "model.onnx").unlink()
    (out / "triton" / "run" / "1" / "model.onnx").write_bytes(b"other")
    assert main(["verify", str(out)]) == 2
    assert "model.onnx is not the file that was exported" in capsys.readouterr().err
