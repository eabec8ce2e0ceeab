"""The client against our server: one released feature, the same logits by every way."""

import numpy as np
import onnxruntime
import pytest
import tritonclient.http
from edge_support import CLASSES, FEATURE, KEY, make_bundle, pixels_of
from serve_support import running

from sfumato.deploy import EdgeClient
from sfumato.deploy.manifest import OutputSpec
from sfumato.errors import RemoteError

TOKEN = "0123456789abcdef"
IMAGES = [pixels_of(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "levels": make_bundle(folder / "levels", name="levels"),
        "fine": make_bundle(folder / "fine", name="fine", bits=12),
        "floats": make_bundle(folder / "floats", name="floats", bits=None),
        "top": make_bundle(folder / "top", name="top", output=OutputSpec("logits", (CLASSES,), "top_k", 2)),
        "label": make_bundle(folder / "label", name="label", output=OutputSpec("logits", (CLASSES,), "label")),
    }


@pytest.fixture(scope="module")
def server(bundles):
    with running(*bundles.values()) as one:
        yield one


def refused(client, said):
    with client, pytest.raises(RemoteError, match=said) as caught:
        client.predict(IMAGES[0])
    assert "\n" not in str(caught.value)


def address(server):
    return f"http://{server.rest}"


@pytest.mark.parametrize("name", ["levels", "fine", "floats"])
def test_stock_clients_and_ours_get_the_same_logits(bundles, server, name):
    bundle = bundles[name]
    with EdgeClient(bundle, device_key=KEY) as client:
        wire, offline = client.release(IMAGES), client.predict_batch(IMAGES)
    (logits,) = onnxruntime.InferenceSession(bundle / "decoder.onnx").run(None, {"feature": wire})
    datatype = {"levels": "UINT8", "fine": "UINT16", "floats": "FP32"}[name]
    for binary in (True, False):
        given = tritonclient.http.InferInput("feature", [3, *FEATURE], datatype)
        given.set_data_from_numpy(wire, binary_data=binary)
        with tritonclient.http.InferenceServerClient(server.rest) as stock:
            assert np.array_equal(stock.infer(name, [given]).as_numpy("logits"), logits)
    with EdgeClient(bundle, address(server), device_key=KEY) as client:
        assert client.predict_batch(IMAGES) == offline


def test_a_server_that_reveals_less(bundles, server):
    with EdgeClient(bundles["top"], device_key=KEY) as client:
        whole = client.predict_batch(IMAGES)
    assert all(len(one.probabilities) == CLASSES for one in whole)  # its own decoder answers all of them
    with EdgeClient(bundles["top"], address(server), device_key=KEY) as client:
        for found, wanted in zip(client.predict_batch(IMAGES), whole, strict=True):
            assert list(found.probabilities) == list(wanted.probabilities)[:2]
            assert np.allclose(list(found.probabilities.values()), list(wanted.probabilities.values())[:2])
    with EdgeClient(bundles["label"], address(server), device_key=KEY) as client:
        assert all(found.probabilities == {} for found in client.predict_batch(IMAGES))


def test_a_model_that_is_not_served(server, tmp_path):
    bundle = make_bundle(tmp_path, name="other")
    client = EdgeClient(bundle, address(server), device_key=KEY)
    refused(client, "does not serve the model 'other'")


def test_a_wrong_token(bundles, tmp_path):
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    with running(bundles["levels"], token_file=tmp_path / "tokens") as one:
        with EdgeClient(bundles["levels"], address(one), token=TOKEN, device_key=KEY) as client:
            assert client.predict(IMAGES[0]).label
        for token in (TOKEN[:-1] + "x", None):
            refused(EdgeClient(bundles["levels"], address(one), token=token, device_key=KEY), "refuses the token")
