import shutil

import pytest
import torch
from audit_cases import Decoder, Encoder, split_model
from torch import nn

from sfumato.audit import ChannelOptions, GaussianPrior, Subject, load_target
from sfumato.audit.identity import behaviour_of, channel_of
from sfumato.audit.subject import check_subject, digest_of_module, passes_gradients
from sfumato.errors import CheckpointError, ConfigError, FeatureError
from sfumato.split import Channel, SplitModel, save_split
from sfumato.training import TrainConfig, train_run

X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An encoder and a decoder in every form, with free and with fixed batch size."""
    folder = tmp_path_factory.mktemp("files")
    edge, cloud = Encoder().eval(), Decoder().eval()
    free = ({0: torch.export.Dim("n", min=1)},)
    for name, module, example in (("encoder", edge, X[:2]), ("decoder", cloud, torch.rand(2, 3))):
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=free), folder / f"{name}.pt2")
        torch.jit.trace(module, example).save(str(folder / f"{name}.pt"))
    torch.export.save(torch.export.export(edge, (X[:3],)), folder / "fixed.pt2")
    _onnx(folder / "encoder.onnx", edge.weight.detach(), "n")
    _onnx(folder / "fixed.onnx", edge.weight.detach(), 2)
    return folder


def _onnx(path, weight, batch):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["h"], transB=1),
        helper.make_node("Sigmoid", ["h"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes, "encoder",
        [helper.make_tensor_value_info("x", kind, [batch, 1, 4, 4])],
        [helper.make_tensor_value_info("z", kind, [batch, 3])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


@pytest.mark.parametrize("name", ["encoder.pt2", "encoder.pt", "fixed.pt2", "encoder.onnx", "fixed.onnx"])
def test_every_form_gives_the_features_of_the_module(files, name):
    subject = load_target(str(files / name), ChannelOptions(noise_std=0.2), trust=True)
    torch.testing.assert_close(subject.model.features(X), Encoder()(X), atol=1e-5, rtol=1e-4)
    check_subject(subject, X)
    assert subject.model.channel.noise_std == 0.2
    assert not subject.classifies
    assert passes_gradients(subject, X)
    assert next(subject.model.parameters()) is not None
    subject.model.eval()  # exported modules refuse to be told
    declared = {"encoder.pt2": "(any, 1, 4, 4)", "fixed.pt2": "(3, 1, 4, 4)", "encoder.onnx": "(any, 1, 4, 4)",
                "fixed.onnx": "(2, 1, 4, 4)"}.get(name)  # fmt: skip
    assert subject.input_shape == (None if declared is None else (1, 4, 4))
    assert (declared or "nothing is declared") in subject.described.sentence()
    assert channel_of(subject)["noise_std"] == 0.2


@pytest.mark.parametrize("suffix", ["pt2", "pt"])
def test_a_pair_of_files_classifies(files, suffix):
    subject = load_target(f"{files}/encoder.{suffix},{files}/decoder.{suffix}", ChannelOptions(), trust=True)
    assert subject.classifies
    torch.testing.assert_close(subject.model(X), Decoder()(Encoder()(X)), atol=1e-5, rtol=1e-4)


def test_functions_give_encoders_split_models_and_subjects(monkeypatch):
    subject = load_target("audit_cases:encoder", ChannelOptions(noise_std=0.5, clip_norm=2.0))
    assert (subject.model.channel.noise_std, subject.model.channel.clip_norm) == (0.5, 2.0)
    whole = load_target("audit_cases:split_model")
    assert whole.classifies
    assert digest_of_module(whole.model) == digest_of_module(load_target("audit_cases:split_model").model)
    made = Subject("mine", split_model(), prior=GaussianPrior(torch.zeros(16), torch.eye(16)))
    monkeypatch.setattr("audit_cases.encoder", lambda: made)
    assert load_target("audit_cases:encoder").prior is made.prior
    assert digest_of_module(made.model) != digest_of_module(subject.model)


def test_a_run_folder_brings_its_channel_and_its_data(tmp_path):
    config = TrainConfig(epochs=1, limit=60, test_limit=20, noise_std=0.1, device="cpu", width=4)
    train_run(config, tmp_path / "run")
    subject = load_target(str(tmp_path / "run"))
    assert subject.kind == "run"
    assert subject.model.channel.noise_std == 0.1
    assert (subject.defense, subject.setting) == ("noise", "noise(0.1)")
    assert subject.data_options["limit"] == 60
    with pytest.raises(ConfigError, match="the run folder says what happens on the wire; leave --noise-std out"):
        load_target(str(tmp_path / "run"), ChannelOptions(noise_std=0.2))


@pytest.mark.parametrize(
    ("target", "error", "match"),
    [
        ("nowhere", ConfigError, "there is no nowhere; TARGET is a run folder"),
        ("nowhere.pt2", CheckpointError, r"nowhere\.pt2 does not exist"),
        ("a.pt2,b.pt2,c.pt2", ConfigError, "names 3 files"),
        ("audit_cases:nothing", ConfigError, "cannot be imported .*give package.module:function"),
        ("no_such_module:f", ConfigError, "cannot be imported"),
        ("audit_cases:broken", ConfigError, "raised RuntimeError: no weights"),
        ("audit_cases:nonsense", ConfigError, "returned a int; return an encoder"),
    ],
)
def test_what_is_no_target_gets_a_sentence(target, error, match):
    with pytest.raises(error, match=match):
        load_target(target)


@pytest.mark.parametrize("name", ["a.pt2", "a.pt", "a.onnx"])
def test_a_damaged_file_gets_a_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=name):
        load_target(str(tmp_path / name), trust=True)


@pytest.mark.parametrize("name", ["a.pt2", "a.pt", "a.onnx"])
def test_code_is_opened_only_on_trust(tmp_path, name):
    """Nothing of the file is read before: it holds no program at all."""
    (tmp_path / name).write_bytes(b"nonsense")
    if name == "a.onnx":
        with pytest.raises(CheckpointError):
            load_target(str(tmp_path / name))
        return
    with pytest.raises(ConfigError, match=f"{name} is a program, and opening it runs it; .*--trust .*as ONNX files"):
        load_target(str(tmp_path / name))


def test_a_saved_split_needs_trust_unless_it_was_made_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    folder = save_split(split_model(), tmp_path / "split", example_input=X)
    assert load_target(str(folder)).kind == "saved"
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert load_target(str(copied)).kind == "saved"  # the same programs, by the same user
    edge = (copied / "edge.pt2").read_bytes()
    (copied / "edge.pt2").write_bytes(edge + b"more")
    with pytest.raises(ConfigError, match="is a program"):
        load_target(str(copied))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(ConfigError, match="is a program"):
        load_target(str(folder))
    assert load_target(str(folder), trust=True).kind == "saved"


def test_a_function_needs_trust_where_its_file_is_somebody_elses(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("raise RuntimeError('it ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="it ran"):
        load_target("theirs:build")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="theirs:build is a program"):
        load_target("theirs:build")
    assert load_target("sfumato.audit.synthetic:linear_gaussian").kind == "function"


def test_external_weights_of_an_onnx_file_are_part_of_it(files, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(files / "encoder.onnx"))
    path = tmp_path / "encoder.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "unrelated.txt").write_text("one")
    first = load_target(str(path)).digest
    (tmp_path / "unrelated.txt").write_text("two")
    assert load_target(str(path)).digest == first
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(data))
    assert load_target(str(path)).digest != first


def test_behaviour_is_what_a_model_computes():
    class Pooling(nn.Module):
        size = 2

        def forward(self, x):
            return nn.functional.avg_pool2d(x, self.size).flatten(1)

    pooling = Pooling()
    subject = Subject("own", SplitModel(pooling, Channel(), nn.Identity()), classifies=False)
    digest, behaviour = digest_of_module(subject.model), behaviour_of(subject, (1, 4, 4))
    assert behaviour_of(subject, (1, 4, 4)) == behaviour
    pooling.size = 4
    assert digest_of_module(subject.model) == digest
    assert behaviour_of(subject, (1, 4, 4)) != behaviour
    cloud = Subject("own", SplitModel(Encoder(), Channel(), Decoder()))
    other = Subject("own", SplitModel(Encoder(), Channel(), nn.Identity()))
    assert behaviour_of(cloud, (1, 4, 4)) != behaviour_of(other, (1, 4, 4))  # answers count too


def _subject(edge, **channel):
    return Subject("bad", SplitModel(edge, Channel(**channel), nn.Identity()).eval())


BY_BATCH = {"alone": lambda n: n == 1, "few": lambda n: n <= 5, "many": lambda n: n > 300, "exactly": lambda n: n == 64}


class Bad(nn.Module):
    """An encoder that misbehaves in one way."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        self.calls += 1
        z = x.flatten(1)
        if self.how == "random":
            return z + torch.randn_like(z)
        if self.how == "several":
            return z, z
        if self.how == "nan":
            return z / 0
        if self.how == "growing":
            return z[:, : 4 + self.calls]
        if self.how == "by batch":
            return z[:, : 2 + len(x)]
        if self.how == "one":
            return z.mean(0, keepdim=True)
        if self.how == "mixing":
            return z - z.mean(0)
        if self.how in BY_BATCH:
            return z + BY_BATCH[self.how](len(x))
        if self.how == "by gradients":
            return z + torch.is_grad_enabled()
        if self.how == "text":
            return "z"
        raise RuntimeError("expected 3 channels\nand a long story")


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("random", "the encoder is random: the same images gave two different features; take noise and dropout out"),
        ("several", "gives 2 tensors, and one feature crosses the wire"),
        ("nan", "gives NaN or infinite features"),
        ("growing", r"gave features \(512, 5\) and then \(512, 6\) for the same images"),
        ("by batch", r"features of shape \(3,\) in a batch of 1 and \(16,\) in one of 512"),
        ("one", "gave 1 features for 512 images"),
        ("mixing", "depends on the other images of its batch"),
        *((how, "depends on the other images of its batch") for how in BY_BATCH),
        ("by gradients", "gives another feature where gradients are recorded"),
        ("text", "the encoder gave a str"),
        ("raises", r"does not take images of shape \(1, 4, 4\) \(expected 3 channels\)"),
    ],
)
def test_what_cannot_be_audited_gets_a_sentence(how, match):
    with pytest.raises(FeatureError, match=match):
        check_subject(_subject(Bad(how)), X[torch.arange(512) % len(X)])


def test_gradients_are_tried_not_believed():
    class Stepped(Encoder):
        def forward(self, x):
            return super().forward(x.detach())

    assert passes_gradients(_subject(Encoder()), X)
    assert not passes_gradients(_subject(Stepped()), X)
