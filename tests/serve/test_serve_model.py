"""What a server finds out about a decoder when it loads it."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from serve_support import CLASSES, DIM, make_bundle

from sfumato.errors import BundleError, ConfigError
from sfumato.files import sha256_of as file_digest
from sfumato.serve.core import Model
from sfumato.serve.engines import ort
from sfumato.serve.generation import Generation
from sfumato.serve.settings import ServeConfig


def loaded(bundle, **settings):
    config = ServeConfig((bundle,), threads=1, **settings)
    return Model(Generation.read(config).bundles[0], config)


@pytest.fixture
def paced(monkeypatch):
    """Networks that take so long by the server's clock: a time for a call, and one for each of its rows."""

    def pace(fixed, each):
        calls, real, clock = [], ort.load, [0.0]
        monkeypatch.setattr("sfumato.serve.core.time", SimpleNamespace(perf_counter=lambda: clock[0]))

        def load(*given):
            run = real(*given)

            def slow(features):
                calls.append(len(features))
                clock[0] += fixed + each * len(features)
                return run(features)

            return slow

        monkeypatch.setattr(ort, "load", load)
        return calls

    return pace


@pytest.mark.parametrize(
    ("fixed", "each", "gains"), [(4e-3, 0.0, True), (4e-3, 1e-3, True), (0.0, 6e-3, False), (5e-4, 10e-3, False)]
)
def test_whether_rows_are_cheaper_together_is_measured(tmp_path, paced, fixed, each, gains):
    paced(fixed, each)
    assert loaded(make_bundle(tmp_path / "tiny")).gains_by_batching is gains


def test_a_slow_decoder_is_compared_on_two_rows(tmp_path, paced):
    calls = paced(0.0, 0.12)
    assert not loaded(make_bundle(tmp_path / "tiny")).gains_by_batching
    assert max(calls) == 2
    assert sum(calls) <= 12


def graph(folder, nodes, *constants):
    """A bundle whose decoder is these nodes, from `feature` to `logits`."""
    make_bundle(folder)
    made = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["N", DIM])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        list(constants),
    )
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "decoder.onnx"
    )
    text = (folder / "manifest.json").read_text()
    old = make_bundle(folder.parent / "other")  # the same weights, so the same digest as the first one
    text = text.replace(file_digest(old / "decoder.onnx"), file_digest(folder / "decoder.onnx"))
    size = (folder / "decoder.onnx").stat().st_size
    text = re.sub(r'("sizes":[^}]*"decoder.onnx": ?)[0-9]+', rf"\g<1>{size}", text)
    (folder / "manifest.json").write_text(text)
    return folder


def test_rows_that_depend_on_one_another_are_not_served(tmp_path):
    weights = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(DIM, CLASSES)).astype("f4"), "weights")
    product = helper.make_node("MatMul", ["centred", "weights"], ["logits"])
    mean = helper.make_node("ReduceMean", ["feature"], ["mean"], axes=[0], keepdims=1)
    centred = helper.make_node("Sub", ["feature", "mean"], ["centred"])
    with pytest.raises(BundleError, match="differ from those of the row alone by .* remove what mixes the rows"):
        loaded(graph(tmp_path / "mean", [mean, centred, product], weights))
    running = helper.make_node("CumSum", ["feature", "axis"], ["centred"])  # alone right, wrong only in company
    axis = onnx.numpy_helper.from_array(np.array(0, np.int64), "axis")
    with pytest.raises(BundleError, match="more than 0.0001"):
        loaded(graph(tmp_path / "sum", [running, product], weights, axis))
    fine = helper.make_node("Identity", ["feature"], ["centred"])
    assert loaded(graph(tmp_path / "fine", [fine, product], weights)).platform == "onnxruntime_onnx"


class TestOpenVino:
    def test_it_gives_what_onnx_runtime_gives(self, tmp_path):
        pytest.importorskip("openvino")
        bundle = make_bundle(tmp_path / "tiny", bits=8)
        model, reference = loaded(bundle, engine="openvino"), loaded(bundle)
        features = reference.reader.examples(5)
        expected = reference.run(features)
        assert model.platform == "openvino"
        assert np.abs(model.run(features) - expected).max() <= 2e-2 * max(1, np.abs(expected).max())

    def test_one_that_computes_something_else_is_not_served(self, tmp_path, monkeypatch):
        from sfumato.serve.engines import ov

        def load(*given):
            run = ort.load(*given)
            return lambda features: 1.1 * run(features) + 0.1

        monkeypatch.setattr(ov, "load", load)
        with pytest.raises(BundleError, match="another --engine"):
            loaded(make_bundle(tmp_path / "tiny"), engine="openvino")

    def test_without_its_package_a_sentence_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(ConfigError, match=r"install sfumato\[openvino\]"):
            loaded(make_bundle(tmp_path / "tiny"), engine="openvino")
