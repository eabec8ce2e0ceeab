"""The manifest: what is written is read again, what is wrong is refused in one sentence."""

import json
from importlib.resources import files

import pytest
from edge_support import make_bundle

from sfumato.deploy import Manifest
from sfumato.deploy.manifest import NoiseSpec, OutputSpec
from sfumato.errors import BundleError

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads(files("sfumato.deploy").joinpath("manifest.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def plain(bundle):
    return json.loads((bundle / "manifest.json").read_text())


@pytest.mark.parametrize("bits", [None, 1, 8, 9, 16])
def test_what_is_written_is_read_again_and_fits_the_published_schema(tmp_path, bits):
    folder = make_bundle(
        tmp_path,
        bits=bits,
        noise=NoiseSpec(0.1, "fresh", ("uniform0",)),
        clip_norm=2.5,
        output=OutputSpec("logits", (4,), "top_k", 2),
        training={"accuracy": 0.5, "config": {"lr": 1e-3}},
        audit={"headline": "x"},
    )
    text = (folder / "manifest.json").read_text()
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
    read = Manifest.load(folder)
    assert read.as_dict() == json.loads(text)
    assert read.noise == NoiseSpec(0.1, "fresh", ("uniform0",))
    assert read.feature.datatype == {None: "FP32", 1: "UINT8", 8: "UINT8", 9: "UINT16", 16: "UINT16"}[bits]
    # The canonical bytes are those of any JSON library that sorts keys and leaves out blanks.
    assert read.canonical_bytes() == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()


WRONG = {
    "no name": lambda m: m.pop("name"),
    "name with a slash": lambda m: m.update(name="../x"),
    "version 0": lambda m: m.update(version="0"),
    "a number as version": lambda m: m.update(version=1),
    "an unknown entry": lambda m: m.update(extra=1),
    "an unknown entry inside": lambda m: m["noise"].update(generator="fast"),
    "two channels": lambda m: m["input"].update(shape=[2, 6, 5]),
    "no height": lambda m: m["input"].update(shape=[3, 0, 5]),
    "another range": lambda m: m["input"].update(range=[0, 255]),
    "another resize": lambda m: m["input"].update(resize="crop"),
    "negative noise": lambda m: m["noise"].update(std=-0.1),
    "noise true": lambda m: m["noise"].update(std=True),
    "another mode": lambda m: m["noise"].update(mode="none"),
    "another datatype": lambda m: m["feature"].update(datatype="FP64"),
    "17 bits": lambda m: m["quantization"].update(bits=17),
    "clip at 0": lambda m: m.update(clip_norm=0),
    "a digest that is none": lambda m: m["files"].update({"encoder.onnx": "abc"}),
    "no decoder": lambda m: m["files"].pop("decoder.onnx"),
    "classes null": lambda m: m.update(classes=None),
    "audit text": lambda m: m.update(audit="good"),
}
WRONG_TOGETHER = {
    "floats with levels": lambda m: m["feature"].update(datatype="FP32"),
    "levels in the wrong order": lambda m: m["quantization"].update(low=2.0),
    "a class too few": lambda m: m["classes"].pop(),
    "top_k without k": lambda m: m["output"].update(reveal="top_k"),
    "k without top_k": lambda m: m["output"].update(top_k=1),
    "k above the classes": lambda m: m["output"].update(reveal="top_k", top_k=5),
    "a file outside": lambda m: m["files"].update({"../../etc/passwd": "0" * 64}),
    "a file anywhere": lambda m: m["files"].update({"/etc/passwd": "0" * 64}),
    "a feature too large": lambda m: m["feature"].update(shape=[2**16, 2**16]),
}


@pytest.mark.parametrize("name", [*WRONG, *WRONG_TOGETHER])
def test_a_wrong_manifest_is_refused_in_one_sentence(bundle, plain, tmp_path, name):
    (WRONG | WRONG_TOGETHER)[name](plain)
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(BundleError) as caught:
        Manifest.load(tmp_path, files=())
    assert "\n" not in str(caught.value)
    # The published schema sees what a schema can see.
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(plain) == (name in WRONG_TOGETHER)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged"),
        ("[]", "not a JSON object"),
        ("{", "damaged"),
        ('{"schema_version": 1, "name": "a", "name": "b"}', "occurs twice"),
        ('{"schema_version": NaN}', "not JSON"),
        ("[" * 100_000, "damaged"),
        ('{"schema_version": 2, "whatever": 1}', "schema 2, this version reads up to 1; upgrade sfumato"),
        ('{"schema_version": "1"}', "whole number"),
    ],
)
def test_what_is_no_manifest_of_ours(tmp_path, text, said):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=said):
        Manifest.load(tmp_path)


def test_what_is_no_text_and_what_is_not_there(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="damaged"):
        Manifest.load(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle .*No such file.*`sfumato export"):
        Manifest.load(tmp_path / "none")


def test_a_changed_or_missing_file_is_found_and_only_where_it_is_needed(tmp_path):
    folder = make_bundle(tmp_path)
    data = (folder / "decoder.onnx").read_bytes()
    assert Manifest.load(folder).read_file(folder, "decoder.onnx") == data
    (folder / "decoder.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for read in (Manifest.load, lambda one: Manifest.load(one, files=()).read_file(one, "decoder.onnx")):
        with pytest.raises(BundleError, match="decoder.onnx is not the file that was exported"):
            read(folder)
    assert Manifest.load(folder, files=["encoder.onnx"]).name == "small"
    (folder / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match="cannot read .*decoder.onnx"):
        Manifest.load(folder)
    with pytest.raises(BundleError, match="lists no other.onnx"):
        Manifest.load(folder, files=["other.onnx"])
