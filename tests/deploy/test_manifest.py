"""The manifest: what is written is read again, what is wrong is refused in one sentence."""

import json
import os

import pytest
from edge_support import make_bundle

from sfumato.deploy import Manifest
from sfumato.deploy.manifest import AuditedChannel, AuditSpec, NoiseSpec, OutputSpec
from sfumato.errors import BundleError

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = Manifest.schema()


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
        noise=NoiseSpec(0.1, ("uniform0",)),
        clip_norm=2.5,
        output=OutputSpec("logits", (4,), "top_k", 2),
        training={"accuracy": 0.5, "config": {"lr": 1e-3}},
        audit=AuditSpec(sha256="0" * 64, target="t", channel=AuditedChannel(0.1), headline="h", minutes=3.0),
    )
    text = (folder / "manifest.json").read_text()
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
    read = Manifest.load(folder)
    assert read.as_dict() == json.loads(text)
    assert read.noise == NoiseSpec(0.1, ("uniform0",))
    assert read.feature.datatype == {None: "FP32", 1: "UINT8", 8: "UINT8", 9: "UINT16", 16: "UINT16"}[bits]
    assert read.encode() == (folder / "manifest.json").read_bytes()


def nested(levels):
    return [nested(levels - 1)] if levels else []


WRONG = {
    "no name": lambda m: m.pop("name"),
    "name with a slash": lambda m: m.update(name="../x"),
    "version 0": lambda m: m.update(version="0"),
    "a number as version": lambda m: m.update(version=1),
    "an unknown entry": lambda m: m.update(extra=1),
    "an unknown entry inside": lambda m: m["noise"].update(generator="fast"),
    "no height": lambda m: m["input"].update(shape=[3, 0, 5]),
    "a range in words": lambda m: m["feature"].update(range=["low", "high"]),
    "another resize": lambda m: m["input"].update(resize="crop"),
    "negative noise": lambda m: m["noise"].update(std=-0.1),
    "noise true": lambda m: m["noise"].update(std=True),
    "noise of a lifetime": lambda m: m["noise"].update(std=1e308),
    "another datatype": lambda m: m["feature"].update(datatype="FP64"),
    "17 bits": lambda m: m["quantization"].update(bits=17),
    "clip at 0": lambda m: m.update(clip_norm=0),
    "a digest that is none": lambda m: m["files"].update({"encoder.onnx": "abc"}),
    "a negative size": lambda m: m["sizes"].update({"encoder.onnx": -1}),
    "classes null": lambda m: m.update(classes=None),
    "an empty class": lambda m: m["classes"].__setitem__(0, ""),
    "audit text": lambda m: m.update(audit="good"),
    "an audit of no channel": lambda m: m.update(audit={"sha256": "0" * 64, "target": "t", "headline": "h"}),
    "a file outside": lambda m: m["files"].update({"../../etc/passwd": "0" * 64}),
    "a file anywhere": lambda m: m["files"].update({"/etc/passwd": "0" * 64}),
    "a file on another drive": lambda m: m["files"].update({"C:encoder.onnx": "0" * 64}),
    "a file on another machine": lambda m: m["files"].update({"\\\\host\\share": "0" * 64}),
    "a file with NUL": lambda m: m["files"].update({"a\0b": "0" * 64}),
    "a name with a line feed": lambda m: m.update(name="small\n"),
}
WRONG_TOGETHER = {
    "two channels": lambda m: m["input"].update(shape=[2, 6, 5]),
    "an image of one side": lambda m: m["input"].update(shape=[3, 6]),
    "a text of three sides": lambda m: m["input"].update(tokens=9, resize="exact"),
    "a text that is stretched": lambda m: m["input"].update(tokens=9, shape=[6]),
    "floats with levels": lambda m: m["feature"].update(datatype="FP32"),
    "levels in the wrong order": lambda m: m["quantization"].update(low=2.0),
    "a class too few": lambda m: m["classes"].pop(),
    "top_k without k": lambda m: m["output"].update(reveal="top_k"),
    "k without top_k": lambda m: m["output"].update(top_k=1),
    "k above the classes": lambda m: m["output"].update(reveal="top_k", top_k=5),
    "no decoder": lambda m: [m[part].pop("decoder.onnx") for part in ("files", "sizes")],
    "a file without a size": lambda m: m["sizes"].pop("encoder.onnx"),
    "an empty range": lambda m: m["feature"].update(range=[1, 1]),
    "hardly any noise": lambda m: m["noise"].update(std=5e-324),
    "two classes of one name": lambda m: m["classes"].__setitem__(0, "class 1"),
    "a class with an escape sequence": lambda m: m["classes"].__setitem__(0, "\x1b[31mred"),
    "a class with a line feed": lambda m: m["classes"].__setitem__(0, "a\nb"),
    "a feature too large": lambda m: m["feature"].update(shape=[2**16, 2**16]),
    "900 levels": lambda m: m.update(training={"x": nested(900)}),
    "40 levels": lambda m: m.update(training={"x": nested(40)}),
    "an image too large": lambda m: m["input"].update(shape=[3, 2**20, 2**20]),
    "levels that float32 cannot tell apart": lambda m: m["quantization"].update(low=1.0, high=1.0 + 1e-12),
    "levels without a width": lambda m: m["quantization"].update(low=0.0, high=5e-324),
    "a mask in the place of the image": lambda m: m["noise"].update(uniforms=["image"]),
    "two masks of one name": lambda m: m["noise"].update(uniforms=["a", "a"]),
    "logits called like the server's own tensor": lambda m: m["output"].update(name="indices"),
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


ODD = [None, True, -1, 0, 2, 2**31, 2**64, 10**30, 1e-320, 1e300, "", "\u202e", "\x1b[31m", "a" * 1000, "\u0663"]
ODD += ["a/../b", [], {}, [None], [[1]], {"a": 1}, [1, 0], [1e30, -1e30], ["a", "a"], "logits", "feature", "FP32"]


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(min(len(value), 2)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def test_an_odd_value_in_any_place_is_read_or_refused_in_one_sentence(plain):
    whole = json.dumps(plain)
    read = 0
    for path in places(plain):
        for value in ODD:
            changed = json.loads(whole)
            if path:
                inner = changed
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = value
            data = json.dumps(changed if path else value).encode()
            said = ""
            try:
                manifest = Manifest.decode(data)
            except BundleError as error:
                said = str(error)
            assert said.isprintable()
            if not said:
                assert Manifest.decode(manifest.encode()) == manifest
                read += 1
    assert read > 50


BAD_JSON = {
    "nothing": (b"", "truncated"),
    "a list": (b"[]", "Expected `object`"),
    "half": (b"{", "truncated"),
    "NaN": (b'{"schema_version": NaN}', "malformed"),
    "no text": (b"\xff\xfe\x00", "malformed"),
    "nested without end": (b"[" * 100_000, "Expected `object`|recursion"),
    "nested inside": (b'{"schema_version": 2, "training": {"x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}}", "recursion"),
    "a number beyond float64": (b'{"schema_version": 2, "training": {"x": 1e999}}', "out of range"),
    "half a surrogate pair": (b'{"schema_version": 2, "training": {"x": "\\ud800"}}', "malformed|truncated"),
    "an escape sequence": (b'{"schema_version": 2, "\\u001b[2J": 1}', "unknown field"),
    "a later version": (b'{"schema_version": 3, "whatever": 1}', "schema 3, this version reads 2; upgrade sfumato"),
    "version 0.1": (b'{"schema_version": 1, "whatever": 1}', r"version 0.1, .* convert it by .*`sfumato export RUN"),
    "a version in words": (b'{"schema_version": "2"}', "Expected `int`"),
    "17 MB": (b" " * (17 << 20), "is larger than"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_is_no_manifest_of_ours(tmp_path, name):
    data, said = BAD_JSON[name]
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=said) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value).isprintable()


def test_only_regular_files_are_read(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle .*No such file.*`sfumato export"):
        Manifest.load(tmp_path / "none")
    folder = make_bundle(tmp_path / "bundle")
    for name in ("encoder.onnx", "manifest.json"):
        path = folder / name
        data = path.read_bytes()
        for make in (os.mkfifo, os.mkdir, lambda one: os.symlink("/dev/zero", one)):
            path.unlink()
            make(path)
            with pytest.raises(BundleError, match="not a regular file|Is a directory"):
                Manifest.load(folder)
            path.rmdir() if path.is_dir() else None
            path.unlink(missing_ok=True)
            path.write_bytes(data)
    Manifest.load(folder)


def test_a_longer_file_is_found_by_its_size_before_it_is_read(tmp_path):
    folder = make_bundle(tmp_path)
    with (folder / "decoder.onnx").open("r+b") as handle:
        handle.truncate(1 << 40)  # a hole, of which nothing is read but one byte too much
    with pytest.raises(BundleError, match="is larger than"):
        Manifest.load(folder)


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
