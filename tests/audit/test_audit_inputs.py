"""What an encoder takes: read from its file, said by `--input`, and noticed where it cannot be right."""

import numpy as np
import pytest
import torch
from audit_cases import write_onnx
from torch import nn

from sfumato.audit import DataOptions, InputDescription, audit_sets, load_target, read_description
from sfumato.audit.inputs import Described, notice_scale
from sfumato.audit.subject import check_subject
from sfumato.errors import ConfigError, FeatureError

X = torch.rand(6, 3, 4, 6, generator=torch.Generator().manual_seed(0))


class Seen(nn.Module):
    """Keeps what it was given."""

    def forward(self, x):
        self.x = x
        return x.float().flatten(1)


def given(x=X, **said):
    inner = Seen()
    Described(inner, InputDescription(**said))(x)
    return inner.x


def test_pixels_become_what_the_encoder_was_trained_on():
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = X.permute(0, 2, 3, 1).numpy()
    torch.testing.assert_close(given(), X)
    np.testing.assert_allclose(given(mean=mean, std=std, layout="NHWC"), (pixels - mean) / std, rtol=1e-5, atol=1e-6)
    caffe = pixels[..., ::-1] * 255 - [104.0, 117.0, 123.0]
    found = given(range=(0.0, 255.0), mean=[104.0, 117.0, 123.0], channels="BGR").permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, caffe, rtol=1e-4, atol=1e-3)
    bytes_ = given(type="uint8", layout="NHWC")
    assert bytes_.dtype == torch.uint8
    np.testing.assert_array_equal(bytes_, np.round(pixels * np.float32(255)).astype(np.uint8))
    assert given(type="float16").dtype == torch.float16
    assert given(X[:, :1], channels="RGB").shape == X.shape  # grey images go to all channels


def test_a_description_passes_gradients():
    x = X.clone().requires_grad_()
    Described(nn.Flatten(), InputDescription(range=(0.0, 255.0), channels="BGR"))(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(X, 255))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("layout: NCWH", "Invalid enum value 'NCWH'"),
        ("scale: 255", "unknown field `scale`"),
        ("range: [255, 0]", "give black first and then white"),
        ("mean: [1, 2]", "mean has 2 values; give one, or one for each of three channels"),
        ("std: [1, 0, 1]", "std has to be positive"),
        ("{type: uint8, mean: 0.5}", "uint8 values cannot be normalised"),
        ("size: [0, 4]", "Expected `int` >= 1"),
        ("size: 32", "`$.size`"),
        ("- 3", "Expected `object"),
        ("range: [0, 255", "while parsing a flow sequence"),
    ],
)
def test_a_bad_description_gets_a_sentence(tmp_path, text, why):
    path = tmp_path / "input.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"input\.yaml does not describe an input .*such as `range: \[0, 255\]`") as e:
        read_description(path)
    assert why in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_description_gets_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_description(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("kind", "shape", "layout", "type_", "size"),
    [
        ("FLOAT", ["n", 3, 4, 6], "NCHW", "float32", (4, 6)),
        ("FLOAT16", ["n", 4, 6, 3], "NHWC", "float16", (4, 6)),
        ("UINT8", ["n", "h", "w", 3], "NHWC", "uint8", None),
        ("FLOAT", ["n", 3, "h", "w"], "NCHW", "float32", None),
    ],
)
def test_what_an_onnx_file_declares_is_read(tmp_path, kind, shape, layout, type_, size):
    path = write_onnx(tmp_path / "encoder.onnx", shape, kind)
    subject = load_target(str(path))
    edge = subject.described
    assert (edge.layout, edge.kind, edge.size, edge.count) == (layout, type_, size, 3)
    assert subject.input_shape == (None if size is None else (3, *size))
    z = subject.model.features(X)
    fed = X if layout == "NCHW" else X.permute(0, 2, 3, 1)
    expected = (fed * 255).round() if type_ == "uint8" else fed
    torch.testing.assert_close(z, expected.flatten(1), rtol=2e-3, atol=1e-3)
    sides = ", ".join("any" if isinstance(side, str) else str(side) for side in shape)
    assert f"x: {type_} ({sides})" in edge.sentence()


def test_a_description_against_the_file_is_refused(tmp_path):
    path = write_onnx(tmp_path / "encoder.onnx", ["n", 3, 4, 6], "FLOAT")
    for said, why in (
        ({"size": (8, 8)}, r"--input says size: \[8, 8\], but the encoder declares x: float32 \(any, 3, 4, 6\)"),
        ({"type": "uint8"}, "--input says type: uint8, but"),
        ({"channels": "grey"}, "--input says channels: 1, but"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_target(str(path), given=InputDescription(**said))


def test_images_are_made_as_large_as_the_encoder_takes(tmp_path):
    path = write_onnx(tmp_path / "encoder.onnx", ["n", 1, 4, 6], "FLOAT")
    subject = load_target(str(path))
    sets = audit_sets(subject, DataOptions(data="digits", limit=9))
    assert sets.train.image_shape == sets.test.image_shape == (1, 4, 6)


def test_images_that_do_not_fit_get_a_sentence_from_what_is_declared(tmp_path):
    path = write_onnx(tmp_path / "encoder.onnx", ["n", 3, 4, 6], "FLOAT")
    with pytest.raises(FeatureError, match=r"the encoder declares x: float32 \(any, 3, 4, 6\); describe .*--input"):
        check_subject(load_target(str(path)), torch.rand(4, 3, 5, 5))


class Scaled(nn.Module):
    """A convolution of images of one scale with a bias, and a bounded activation."""

    def __init__(self, white, bounded):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.white, self.bounded = nn.Conv2d(3, 8, 3), white, bounded
        self.net.weight.data *= 3

    def forward(self, x):
        z = self.net(x / self.white * 4 - 2)
        return torch.sigmoid(z) if self.bounded else z.relu()


@pytest.mark.parametrize("bounded", [True, False])
def test_a_wrong_scale_is_noticed_and_a_right_one_is_not(bounded):
    said = {255: InputDescription(range=(0.0, 255.0)), 1: InputDescription()}
    for white in (255, 1):
        assert notice_scale(Described(Scaled(white, bounded), said[white]), X) == ""
    dark = notice_scale(Described(Scaled(255, bounded), said[1]), X)
    assert dark.startswith("the features hardly depend on the image: they differ by ")
    assert "the audit feeds float32 NCHW, 0 to 1; nothing is declared; say with --input" in dark
    if bounded:
        assert notice_scale(Described(Scaled(1, True), said[255]), X).startswith("the features saturate: ")
