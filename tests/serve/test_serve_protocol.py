"""The Open Inference Protocol over REST: every endpoint, every error, stock clients."""

import http.client
import json
import shutil
import subprocess

import numpy as np
import pytest
import tritonclient.http
from serve_support import (
    CLASSES,
    DIM,
    ask,
    by_onnxruntime,
    features,
    infer,
    logits_of,
    make_bundle,
    metric,
    raw,
    running,
    tensor,
)
from tritonclient.utils import InferenceServerException

import sfumato
from sfumato.serve.errors import Refusal


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "tiny": make_bundle(folder / "tiny"),
        "tiny 2": make_bundle(folder / "tiny-2", version="2", seed=2),
        "tiny 10": make_bundle(folder / "tiny-10", version="10", seed=3),
        "maps": make_bundle(folder / "maps", "maps", shape=(2, 3, 3)),
        "four-bits": make_bundle(folder / "four-bits", "four-bits", bits=4),
        "levels": make_bundle(folder / "levels", "levels", bits=12),
        "top": make_bundle(folder / "top", "top", reveal="top_k", top_k=3),
        "label": make_bundle(folder / "label", "label", reveal="label"),
    }


@pytest.fixture(scope="module")
def server(bundles):
    with running(*bundles.values(), max_request_bytes=100_000, max_rows=32) as one:
        yield one


@pytest.fixture(scope="module")
def triton(server):
    with tritonclient.http.InferenceServerClient(server.rest) as client:
        yield client


class TestEndpoints:
    def test_health(self, server):
        assert ask(server.rest, "/v2/health/live")[::2] == (200, {"live": True})
        assert ask(server.rest, "/v2/health/ready")[::2] == (200, {"ready": True})

    def test_server_metadata(self, server):
        answer = {"name": "sfumato", "version": sfumato.__version__, "extensions": ["binary_tensor_data"]}
        assert ask(server.rest, "/v2")[::2] == (200, answer)

    def test_model_metadata(self, server):
        _, _, answer = ask(server.rest, "/v2/models/maps")
        assert answer == {
            "name": "maps",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "feature", "datatype": "FP32", "shape": [-1, 2, 3, 3]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}],
        }
        assert ask(server.rest, "/v2/models/levels")[2]["inputs"][0]["datatype"] == "UINT16"
        for model, expected in (
            ("top", [("indices", "INT64", [-1, 3]), ("probabilities", "FP32", [-1, 3])]),
            ("label", [("indices", "INT64", [-1, 1])]),
        ):
            outputs = ask(server.rest, f"/v2/models/{model}")[2]["outputs"]
            assert [(part["name"], part["datatype"], part["shape"]) for part in outputs] == expected

    def test_versions_are_ordered_as_numbers_and_the_newest_answers(self, server, bundles):
        for path in ("/v2/models/tiny", "/v2/models/tiny/versions/2"):
            assert ask(server.rest, path)[2]["versions"] == ["1", "2", "10"]
        feature = features()
        for version, bundle in (("1", "tiny"), ("2", "tiny 2"), ("10", "tiny 10")):
            _, _, answer = ask(server.rest, f"/v2/models/tiny/versions/{version}/infer", {"inputs": [tensor(feature)]})
            assert answer["model_version"] == version
            np.testing.assert_array_equal(logits_of(answer), by_onnxruntime(bundles[bundle], feature))
        assert infer(server.rest, feature)[2]["model_version"] == "10"

    def test_model_readiness(self, server):
        for path in ("/v2/models/tiny/ready", "/v2/models/tiny/versions/2/ready"):
            assert ask(server.rest, path)[::2] == (200, {"name": "tiny", "ready": True})

    def test_metrics_count_what_happened(self, server):
        before = {
            name: metric(server.rest, name, 'model="maps"')
            for name in ("sfumato_rows_total", "sfumato_request_seconds_count", "sfumato_batch_rows_count")
        }
        invalid = metric(server.rest, "sfumato_rejections_total", 'reason="invalid"')
        infer(server.rest, features(3, shape=(2, 3, 3)), "maps")
        ask(server.rest, "/v2/models/maps/infer", {"inputs": []})
        after = {name: metric(server.rest, name, 'model="maps"') for name in before}
        assert [after[name] - before[name] for name in before] == [3, 1, 1]
        assert metric(server.rest, "sfumato_rejections_total", 'reason="invalid"') == invalid + 1
        assert metric(server.rest, "sfumato_requests_total", 'model="maps"', 'status="400"') >= 1
        assert metric(server.rest, "sfumato_queue_requests") == 0
        assert ask(server.rest, "/metrics")[1]["content-type"].startswith("text/plain")

    def test_the_description_names_every_endpoint(self, server):
        _, _, answer = ask(server.rest, "/openapi.json")
        paths = {path: set(methods) for path, methods in answer["paths"].items()}
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        assert paths == {
            **{path: {"get"} for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/metrics")},
            **{path: {"get"} for path in (model, version, model + "/ready", version + "/ready")},
            **{path: {"post"} for path in (model + "/infer", version + "/infer")},
        }


def ask_in_bytes(server, content, size):
    """The tensor's bytes behind the JSON part, of a `size` that may be wrong."""
    head = json.dumps({"inputs": [tensor(features(), data=..., parameters={"binary_data_size": size})]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return ask(server.rest, "/v2/models/tiny/infer", head + content, headers=headers)


class TestInference:
    @pytest.mark.parametrize("rows", [1, 2, 7, 32])
    def test_json_answers_are_onnx_runtimes_bit_for_bit(self, server, bundles, rows):
        feature = features(rows)
        status, headers, answer = infer(server.rest, feature, id="request 7")
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("request 7", "tiny", "10")
        np.testing.assert_array_equal(logits_of(answer), by_onnxruntime(bundles["tiny 10"], feature))

    def test_flat_and_nested_lists_are_the_same(self, server, bundles):
        feature = features(2, shape=(2, 3, 3))
        nested = infer(server.rest, feature, "maps")[2]
        body = {"inputs": [tensor(feature, data=feature.ravel().tolist())]}
        flat = ask(server.rest, "/v2/models/maps/infer", body)[2]
        assert nested == flat
        assert "id" not in flat
        np.testing.assert_array_equal(logits_of(flat), by_onnxruntime(bundles["maps"], feature))

    def test_binary_in_and_json_out_and_the_reverse(self, server, bundles):
        feature = features()
        expected = by_onnxruntime(bundles["tiny 10"], feature)
        status, _, answer = ask_in_bytes(server, feature.tobytes(), feature.nbytes)
        assert status == 200
        np.testing.assert_array_equal(logits_of(answer), expected)
        for more in (
            {"parameters": {"binary_data_output": True}},
            {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]},
        ):
            status, headers, content = infer(server.rest, feature, **more)
            assert (status, headers["content-type"]) == (200, "application/octet-stream")
            length = int(headers["inference-header-content-length"])
            (output,) = json.loads(content[:length])["outputs"]
            assert output["parameters"]["binary_data_size"] == len(content) - length == expected.nbytes
            assert content[length:] == expected.astype("<f4").tobytes()
        asked = {"outputs": [{"name": "logits", "parameters": {"binary_data": False}}]}
        answer = infer(server.rest, feature, parameters={"binary_data_output": True}, **asked)[2]
        np.testing.assert_array_equal(logits_of(answer), expected)

    @pytest.mark.parametrize(("model", "dtype", "last"), [("four-bits", np.uint8, 15), ("levels", np.uint16, 4095)])
    def test_quantised_features(self, server, bundles, model, dtype, last):
        feature = np.random.default_rng(0).integers(0, last + 1, (3, DIM)).astype(dtype)
        feature[0, 0] = last
        np.testing.assert_array_equal(
            logits_of(infer(server.rest, feature, model)[2]), by_onnxruntime(bundles[model], feature)
        )
        feature[1, 2] = last + 1
        status, _, answer = infer(server.rest, feature, model)
        assert status == 400
        assert f"beyond the quantiser's last level {last}" in answer["error"]

    def test_top_k_and_label_reveal_no_more(self, server, bundles):
        feature = features(4)
        logits = by_onnxruntime(bundles["top"], feature).astype(np.float64)
        _, _, answer = infer(server.rest, feature, "top")
        outputs = {part["name"]: np.array(part["data"]).reshape(part["shape"]) for part in answer["outputs"]}
        order = np.argsort(-logits, axis=1)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(outputs["indices"], order[:, :3])
        np.testing.assert_allclose(outputs["probabilities"], np.take_along_axis(shares, order[:, :3], 1), rtol=1e-6)
        _, _, answer = infer(server.rest, feature, "label")
        assert [part["name"] for part in answer["outputs"]] == ["indices"]
        assert answer["outputs"][0]["data"] == logits.argmax(axis=1).tolist()
        for model in ("top", "label"):
            status, _, answer = infer(server.rest, feature, model, outputs=[{"name": "logits"}])
            assert status == 400
            assert "logits" not in answer["error"].split(";")[0]

    def test_selected_outputs_alone_are_sent(self, server):
        _, _, answer = infer(server.rest, features(), "top", outputs=[{"name": "probabilities"}])
        assert [part["name"] for part in answer["outputs"]] == ["probabilities"]

    def test_an_overflow_is_the_clients_mistake_not_a_failure(self, server):
        outputs = server.core.find("tiny").outputs
        for wrong in (np.nan, np.inf):
            with pytest.raises(Refusal, match="overflow"):
                outputs(np.array([[0.0, wrong, 0.0, 0.0, 0.0]], np.float32))


def _changed(**changes):
    return {"inputs": [tensor(features(), **changes)]}


BAD = {
    "no JSON": (b"{", "not valid JSON"),
    "no object": ([], "Expected `object`, got `array`"),
    "not UTF-8": (b'{"inputs": "\xff"}', "Expected `array`, got `str`"),
    "NaN": (b'{"inputs": [{"name": "feature", "datatype": "FP32", "shape": [1, 8], "data": [NaN]}]}', "not valid JSON"),
    "too deep": (b'{"inputs": ' + b"[" * 50_000, "Expected `object`, got `array`"),
    "a huge number": (b'{"inputs": ' + b"9" * 5000 + b"}", "at `$.inputs`"),
    "no inputs": ({}, "missing required field `inputs`"),
    "inputs no list": ({"inputs": {}}, "Expected `array`, got `object`"),
    "two inputs": ({"inputs": [tensor(features())] * 2}, "`array` of length 1"),
    "other name": (_changed(name="image"), "one input, 'feature'"),
    "other type": (_changed(datatype="FP64"), "datatype FP32"),
    "type missing": (_changed(datatype=...), "missing required field `datatype`"),
    "other shape": (_changed(shape=[1, 9]), "shape [-1, 8]"),
    "shape of rows alone": (_changed(shape=[8]), "shape [-1, 8]"),
    "shape no list": (_changed(shape="18"), "at `$.inputs[0].shape`"),
    "shape of fractions": (_changed(shape=[1.0, 8]), "Expected `int`, got `float`"),
    "shape of truth": (_changed(shape=[True, 8]), "Expected `int`, got `bool`"),
    "no rows": (_changed(shape=[0, 8], data=[]), "1 to 32 rows"),
    "negative rows": (_changed(shape=[-1, 8]), "1 to 32 rows"),
    "too many rows": (_changed(shape=[33, 8]), "1 to 32 rows"),
    "absurd rows": (_changed(shape=[10**18, 8]), "1 to 32 rows"),
    "rows beyond 64 bits": (_changed(shape=[10**30, 8]), "1 to 32 rows"),
    "too few values": (_changed(data=[1.0] * 7), "needs 8 values"),
    "too many values": (_changed(data=[1.0] * 9), "needs 8 values"),
    "wrong nesting": (_changed(data=[[1.0] * 4] * 2), "needs 8 values"),
    "ragged": (_changed(data=[[1.0] * 7, [1.0]]), "needs 8 values"),
    "texts": (_changed(data=["1"] * 8), "no FP32 number"),
    "null": (_changed(data=[None] * 8), "no FP32 number"),
    "truth": (_changed(data=[True] * 8), "no FP32 number"),
    "no data": (_changed(data=...), "neither 'data' nor"),
    "data an object": (_changed(data={}), "needs 8 values"),
    "beyond FP32": (_changed(data=[1e39] * 8), "not finite"),
    "beyond FP64": (json.dumps(_changed(data=[7.5] * 8)).replace("7.5", "1e999").encode(), "no FP32 number"),
    "id a number": ({**_changed(), "id": 3}, "at `$.id`"),
    "parameters a list": ({**_changed(), "parameters": []}, "at `$.parameters`"),
    "timeout a text": ({**_changed(), "parameters": {"timeout": "1"}}, "at `$.parameters.timeout`"),
    "timeout of nothing": ({**_changed(), "parameters": {"timeout": 0}}, "Expected `int` >= 1"),
    "unknown output": ({**_changed(), "outputs": [{"name": "softmax"}]}, "outputs are logits"),
    "output twice": ({**_changed(), "outputs": [{"name": "logits"}] * 2}, "twice"),
    "output without name": ({**_changed(), "outputs": [{}]}, "missing required field `name`"),
    "classification": (
        {**_changed(), "outputs": [{"name": "logits", "parameters": {"classification": 1}}]},
        "not supported",
    ),
    "flag a number": ({**_changed(), "parameters": {"binary_data_output": 1}}, "Expected `bool`"),
    "size without header": (_changed(data=..., parameters={"binary_data_size": 32}), "differs from the 0 bytes"),
    "much beside the data": ({**_changed(), "outputs": [{"name": ""}] * 2000}, "without its data is longer than 16384"),
    "shared memory": (_changed(data=..., parameters={"shared_memory_region": "a"}), "neither 'data' nor"),
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("case", BAD)
    def test_bad_requests_get_a_sentence(self, server, case):
        body, sentence = BAD[case]
        status, headers, answer = ask(server.rest, "/v2/models/tiny/infer", body)
        assert (status, headers["content-type"], list(answer)) == (400, "application/json", ["error"])
        assert sentence in answer["error"]
        assert len(answer["error"]) < 200

    @pytest.mark.parametrize(
        ("length", "body", "sentence"),
        [
            *((length, b"{}", "not a length") for length in ("x", "-1", "0", "3", "9" * 30)),
            ("2", b"{}abc", "missing required field `inputs`"),
        ],
    )
    def test_bad_lengths_of_the_json_part(self, server, length, body, sentence):
        headers = {"Inference-Header-Content-Length": length}
        status, _, answer = ask(server.rest, "/v2/models/tiny/infer", body, headers=headers)
        assert (status, sentence in answer["error"]) == (400, True), answer

    @pytest.mark.parametrize(
        ("size", "given", "sentence"),
        [
            (32, 31, "differs from the 31 bytes"),
            (31, 31, "needs 32 bytes"),
            (33, 33, "needs 32 bytes"),
            (True, 1, "Expected `int"),
            (32.0, 32, "Expected `int"),
            (-1, 32, "differs"),
            (None, 32, "no input has a 'binary_data_size'"),
        ],
    )
    def test_bad_binary_sizes(self, server, size, given, sentence):
        status, _, answer = ask_in_bytes(server, bytes(given), size)
        assert (status, sentence in answer["error"]) == (400, True), answer

    def test_nan_in_binary_data(self, server):
        status, _, answer = ask_in_bytes(server, np.full(DIM, np.nan, np.float32).tobytes(), 4 * DIM)
        assert (status, "not finite" in answer["error"]) == (400, True)

    def test_unknown_paths_models_and_versions(self, server):
        for path in ("other", "other/ready", "tiny/versions/3", "tiny/versions/3/ready", "tiny/versions/one"):
            status, _, answer = ask(server.rest, f"/v2/models/{path}")
            assert (status, list(answer)) == (404, ["error"]), path
        for path in ("/v2/models", "/", "/docs"):
            assert ask(server.rest, path)[0] == 404, path
        assert ask(server.rest, "/v2/models/tiny/infer")[0] == 405

    def test_a_slash_at_the_end_changes_nothing(self, server):
        body = {"inputs": [tensor(features())]}
        for path in ("/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"):
            assert ask(server.rest, path + "/", body)[2] == ask(server.rest, path, body)[2]
        assert ask(server.rest, "/v2/models/tiny/ready/")[0] == 200

    def test_an_unknown_model_or_version_is_not_inferred(self, server):
        body = {"inputs": [tensor(features())]}
        for path in ("/v2/models/other/infer", "/v2/models/tiny/versions/3/infer"):
            assert ask(server.rest, path, body)[0] == 404
        assert "its versions are 1, 2, 10" in ask(server.rest, "/v2/models/tiny/versions/3/infer", body)[2]["error"]

    def test_wrong_methods(self, server):
        status, headers, answer = ask(server.rest, "/v2", b"", method="DELETE")
        assert (status, headers["allow"], list(answer)) == (405, "GET, HEAD", ["error"])

    def test_too_large_a_body_is_refused_before_and_while_it_comes(self, server):
        large = b" " * 100_001
        status, _, answer = ask(server.rest, "/v2/models/tiny/infer", large)
        assert (status, answer) == (413, {"error": "the body is larger than 100000 bytes"})
        status, _, _ = ask(server.rest, "/v2/models/tiny/infer", large[:-1])
        assert status == 400
        chunked = iter([large[:60_000], large[60_000:]])
        connection = http.client.HTTPConnection(server.rest, timeout=60)
        connection.request("POST", "/v2/models/tiny/infer", chunked, encode_chunked=True)
        assert connection.getresponse().status == 413

    def test_compressed_bodies_are_refused(self, server):
        for name, value in (("Content-Encoding", "gzip"), ("Transfer-Encoding", "gzip, chunked")):
            content = b"x" if name == "Content-Encoding" else b"1\r\nx\r\n0\r\n\r\n"
            status, _, answer = ask(server.rest, "/v2/models/tiny/infer", content, headers={name: value})
            assert (status, "compressed" in answer["error"]) == (415, True)

    def test_what_is_no_http_gets_an_error_body(self, server):
        head, _, body = raw(server.rest, b"\x16\x03\x01 this is no HTTP\r\n\r\n").partition(b"\r\n\r\n")
        assert (head[:12], list(json.loads(body))) == (b"HTTP/1.1 400", ["error"])

    @pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
    def test_an_offer_of_another_protocol_is_left_alone(self, server, offer):
        """Java's client makes one with every request, whose body has to be read all the same."""
        body = json.dumps({"inputs": [tensor(features())]}).encode()
        head = (
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: %b\r\n" % offer
        )
        said = raw(server.rest, head + b"Content-Length: %d\r\n\r\n" % len(body), body, pause=0.05)
        assert said.startswith(b"HTTP/1.1 200"), said


class TestStockClients:
    def test_triton_over_http(self, server, triton, bundles):
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("tiny")
        assert triton.get_server_metadata()["name"] == "sfumato"
        assert triton.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, DIM]
        feature = features(5)
        expected = by_onnxruntime(bundles["tiny"], feature)
        for binary_in in (True, False):
            given = tritonclient.http.InferInput("feature", list(feature.shape), "FP32")
            given.set_data_from_numpy(feature, binary_data=binary_in)
            for outputs in (
                None,
                [tritonclient.http.InferRequestedOutput("logits", binary_data=True)],
                [tritonclient.http.InferRequestedOutput("logits", binary_data=False)],
            ):
                result = triton.infer("tiny", [given], "1", outputs=outputs, request_id="9")
                np.testing.assert_array_equal(result.as_numpy("logits"), expected)
                assert result.get_response()["id"] == "9"

    def test_triton_hears_errors(self, triton):
        given = tritonclient.http.InferInput("feature", [1, 4], "FP32")
        given.set_data_from_numpy(features()[:, :4])
        with pytest.raises(InferenceServerException, match=r"shape \[-1, 8\]"):
            triton.infer("tiny", [given])

    @pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
    def test_curl(self, server, bundles, tmp_path):
        feature = features(2)
        (tmp_path / "body.json").write_text(json.dumps({"inputs": [tensor(feature)]}))
        url = f"http://{server.rest}/v2/models/tiny/versions/1/infer"
        done = subprocess.run(
            ["curl", "--silent", "--fail", url, "--data", f"@{tmp_path / 'body.json'}"], capture_output=True, check=True
        )
        np.testing.assert_array_equal(logits_of(json.loads(done.stdout)), by_onnxruntime(bundles["tiny"], feature))
