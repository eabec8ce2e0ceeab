"""The client on the device: what it sends, how often, and when it sends nothing."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edge_support import (
    CLASSES,
    FEATURE,
    ID,
    KEY,
    STD,
    logits_answer,
    make_bundle,
    manifest_of,
    pixels_of,
    recording,
)
from onnx import helper

from sfumato.deploy import EdgeClient, noise
from sfumato.deploy.device_key import load_device_key
from sfumato.deploy.manifest import AuditedChannel, AuditSpec, NoiseSpec
from sfumato.deploy.signing import new_key, private_key, sign
from sfumato.errors import BundleError, ConfigError, FeatureError, RemoteError, StorageError

LOGITS = [[0.0, 3.0, 1.0, -1.0]]


def right(*_):
    return logits_answer(LOGITS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("floats"), bits=None)


@pytest.fixture
def server():
    with recording(right) as one:
        yield one


def client_of(bundle, url=None, **settings):
    return EdgeClient(bundle, url, **({"device_key": KEY, "retries": 0} | settings))


def z_hat(bundle: Path, pixels: np.ndarray) -> np.ndarray:
    """The clean feature, by ONNX Runtime alone."""
    image = (pixels.astype(np.float64) / 255).astype(np.float32).transpose(2, 0, 1)[None]
    return _session((bundle / "encoder.onnx").read_bytes()).run(None, {"image": image})[0]


@lru_cache(maxsize=4)
def _session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model)


def body_parts(body: bytes, headers) -> tuple[dict, bytes]:
    length = int(headers["Inference-Header-Content-Length"])
    return json.loads(body[:length]), body[length:]


class TestWire:
    def test_one_query(self, bundle, server):
        with client_of(bundle, server.url, token="s3cret") as client:
            answer = client.predict(pixels_of())
        assert server.headers[0]["Authorization"] == "Bearer s3cret"
        assert KEY not in server.bodies[0]
        assert pixels_of().tobytes() not in server.bodies[0]
        assert (answer.label, answer.index) == ("class 1", 1)
        odds = np.exp(LOGITS[0])
        assert list(answer.probabilities) == ["class 1", "class 2", "class 0", "class 3"]
        assert np.allclose(list(answer.probabilities.values()), sorted(odds / odds.sum(), reverse=True))
        head, raw = body_parts(server.bodies[0], server.headers[0])
        assert server.paths == ["/v2/models/small/versions/1/infer"]
        (given,) = head["inputs"]
        assert given["parameters"] == {"binary_data_size": len(raw)}
        assert (given["name"], given["shape"], given["datatype"]) == ("feature", [1, *FEATURE], "UINT8")
        assert len(raw) == np.prod(FEATURE)

    @pytest.mark.parametrize("bits", [None, 4, 8, 12])
    def test_what_arrives_is_the_feature_plus_noise_of_the_stated_size(self, tmp_path, bits):
        bundle = make_bundle(tmp_path, bits=bits)
        with client_of(bundle) as client:
            images = [pixels_of(seed) for seed in range(300)]
            wire = client.release(images)
        levels = client.manifest.quantization
        values = wire if levels is None else levels.low + wire.astype(np.float64) * 1.8 / (2**bits - 1)
        added = values - np.concatenate([z_hat(bundle, image) for image in images])
        step = 0 if bits is None else 1.8 / (2**bits - 1)
        wanted = np.sqrt(STD**2 + step**2 / 12)
        assert abs(added.mean()) < 5 * wanted / np.sqrt(added.size)
        assert abs(added.std() / wanted - 1) < 0.05
        if bits is None:
            from scipy import stats

            assert stats.kstest(added.ravel() / STD, "norm").pvalue > 1e-3

    def test_a_batch_is_what_its_images_are_alone(self, floats, server):
        images = [pixels_of(seed) for seed in (0, 1, 0)]
        server.answer = lambda *_: logits_answer(LOGITS * 3)
        with client_of(floats, server.url) as client:
            assert len(client.predict_batch(images)) == 3
            assert client.predict_batch([]) == []
            alone = np.concatenate([client.release([image]) for image in images])
        _, raw = body_parts(server.bodies[0], server.headers[0])
        assert raw == alone.tobytes()
        assert len(server.bodies) == 1


class TestMemoised:
    def test_a_repeat_is_byte_identical_on_the_wire_in_other_sessions_too(self, floats, server):
        for _ in range(2):
            with client_of(floats, server.url) as client:
                client.predict(pixels_of())
                client.predict(pixels_of())
        tensors = {body_parts(*one)[1] for one in zip(server.bodies, server.headers, strict=True)}
        ids = {body_parts(*one)[0]["id"] for one in zip(server.bodies, server.headers, strict=True)}
        assert (len(tensors), len(ids), len(server.bodies)) == (1, 4, 4)

    def test_in_another_process_too(self, floats, tmp_path):
        code = (
            "import sys; sys.path.insert(0, sys.argv[2]); from edge_support import *; from sfumato.deploy import "
            "EdgeClient; print(EdgeClient(sys.argv[1], device_key=KEY).release([pixels_of()]).tobytes().hex())"
        )
        command = [sys.executable, "-c", code, str(floats), str(Path(__file__).parent)]
        there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        with client_of(floats) as client:
            assert client.release([pixels_of()]).tobytes().hex() == there

    def test_another_device_image_or_bundle_gets_other_noise(self, floats, tmp_path):
        other = make_bundle(tmp_path / "other", bits=None, seed=1)
        renamed = make_bundle(tmp_path / "renamed", bits=None, name="renamed", training={"accuracy": 0.5})
        near = pixels_of()
        near[0, 0, 0] ^= 1
        with client_of(floats) as one, client_of(floats, device_key=bytes(KEY[::-1])) as two, client_of(other) as three:
            base = one.release([pixels_of()]) - z_hat(floats, pixels_of())
            others = [
                two.release([pixels_of()]) - z_hat(floats, pixels_of()),
                three.release([pixels_of()]) - z_hat(other, pixels_of()),
                one.release([near]) - z_hat(floats, near),
            ]
        with client_of(renamed) as client:
            assert np.array_equal(client.release([pixels_of()]) - z_hat(renamed, pixels_of()), base)
        for added in others:
            assert np.abs(added - base).max() > STD / 10
            assert abs(np.corrcoef(added.ravel(), base.ravel())[0, 1]) < 0.95

    def test_averaging_repeats_gains_nothing_and_near_duplicates_do_average(self, floats):
        """The limit that docs/security.md states: memoising covers exact repeats only."""
        truth = z_hat(floats, pixels_of())
        with client_of(floats) as client:
            repeats = client.release([pixels_of()] * 64)
            images = []
            for index in range(64):
                image = pixels_of()
                image.ravel()[index] ^= 1
                images.append(image)
            near = client.release(images)
        assert np.array_equal(repeats, np.repeat(repeats[:1], 64, axis=0))
        assert np.abs(repeats.mean(axis=0) - truth).mean() > STD / 3
        assert np.abs(near.mean(axis=0) - truth).mean() < STD / 4

    def test_random_masks_are_memoised_as_well(self, tmp_path):
        bundle = make_bundle(tmp_path, bits=None, noise=NoiseSpec(STD, ("uniform0",)))
        with client_of(bundle) as one, client_of(bundle) as two:
            first, second, other = one.release([pixels_of()]), two.release([pixels_of()]), one.release([pixels_of(1)])
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)


class TestForks:
    def test_threads_and_forked_children_release_what_their_parent_does(self, floats):
        with client_of(floats) as client:
            found = [client.release([pixels_of()]).tobytes()]
            with ThreadPoolExecutor(4) as pool:
                found += pool.map(lambda _: client.release([pixels_of()]).tobytes(), range(4))
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writing, client.release([pixels_of()]).tobytes())
                os._exit(0)
            found.append(os.read(reading, 4096))
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)
        assert len(found) == 6
        assert len(set(found)) == 1


class TestFailsClosed:
    """Each of these has to happen before anything is sent, so a server's address is given and never asked."""

    @pytest.fixture(autouse=True)
    def _nothing_is_sent(self, server):
        yield
        assert server.bodies == []

    def test_an_unsigned_or_forged_bundle_where_a_signature_is_required(self, tmp_path, server):
        bundle = make_bundle(tmp_path / "bundle")
        public = new_key(tmp_path / "key.pem")
        with pytest.raises(BundleError, match="is not signed"):
            client_of(bundle, server.url, require_signature=public)
        sign(bundle, private_key(tmp_path / "key.pem"))
        client_of(bundle, server.url, require_signature=public).close()
        manifest_of(bundle, noise=NoiseSpec(0.0)).save(bundle)
        with pytest.raises(BundleError, match="changed since it was signed"):
            client_of(bundle, server.url, require_signature=public)

    def test_another_encoder_than_the_manifest_says(self, tmp_path, server):
        bundle, other = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
        shutil.copy(other / "encoder.onnx", bundle)
        with pytest.raises(BundleError, match="encoder.onnx is not the file"):
            client_of(bundle, server.url)

    def test_a_device_needs_no_decoder(self, tmp_path, server):
        bundle = make_bundle(tmp_path)
        (bundle / "decoder.onnx").unlink()
        client_of(bundle, server.url).close()
        with pytest.raises(BundleError, match=r"cannot read .*decoder.onnx"):
            client_of(bundle)

    def test_an_encoder_that_draws_random_numbers(self, tmp_path, server):
        hidden = helper.make_node("RandomNormalLike", ["image"], ["unused"])
        with pytest.raises(BundleError, match="RandomNormalLike"):
            client_of(make_bundle(tmp_path, extra=[hidden]), server.url)

    @pytest.mark.parametrize("gain", [2.0, -1.0, float("nan"), float("inf")])
    def test_a_feature_outside_its_declared_range(self, tmp_path, server, gain):
        """An encoder that outgrows its noise cannot be found by its hash, only by what it gives."""
        client = client_of(make_bundle(tmp_path, gain=gain), server.url)
        with client, pytest.raises(FeatureError, match="nothing was sent"):
            client.predict(pixels_of())

    def test_a_bundle_without_noise(self, tmp_path, server):
        bundle = make_bundle(tmp_path, noise=NoiseSpec(0.0))
        with pytest.raises(BundleError, match="adds no noise"):
            client_of(bundle, server.url)
        with client_of(bundle, server.url, allow_no_noise=True) as client:
            assert np.abs(client.release([pixels_of()]) * (1.8 / 255) - 0.4 - z_hat(bundle, pixels_of())).max() < 0.004

    @pytest.mark.parametrize(
        ("channel", "clip", "said"),
        [
            (AuditedChannel(STD), None, None),
            (AuditedChannel(2 * STD), None, "deviation 0.1, and its audit was made with 0.2"),
            (AuditedChannel(STD, clip_norm=2.0), None, "clips to None, and its audit was made with 2"),
            (AuditedChannel(STD, clip_norm=2.0), 2.5, "clips to 2.5, and its audit was made with 2"),
            (AuditedChannel(STD, clip_norm=2.0), 2.0, None),
            (AuditedChannel(STD, clip_norm=2.0), 1.0, None),
        ],
    )
    def test_less_protection_than_was_audited(self, tmp_path, server, channel, clip, said):
        audit = AuditSpec(sha256="0" * 64, target="x", channel=channel, headline="h")
        bundle = make_bundle(tmp_path, audit=audit, clip_norm=clip)
        for allowed in (False, True):  # by name a bundle without noise is, and no other one
            with contextlib.nullcontext() if said is None else pytest.raises(BundleError, match=said):
                client_of(bundle, server.url, allow_no_noise=allowed).close()

    def test_other_inputs_than_the_manifest_says(self, tmp_path, server):
        bundle = make_bundle(tmp_path)
        manifest_of(bundle, noise=NoiseSpec(STD, ("uniform0",))).save(bundle)
        with pytest.raises(BundleError, match="the manifest says"):
            client_of(bundle, server.url)

    @pytest.mark.parametrize("missing", ["cryptography", "onnxruntime"])
    def test_a_missing_package_has_no_replacement(self, bundle, server, monkeypatch, missing):
        for name in [name for name in sys.modules if name.split(".")[0] == missing]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, missing, None)
        noise._cipher.cache_clear()
        with pytest.raises(ConfigError, match=rf"needs the package {missing}; install sfumato\[edge\]"):
            client_of(bundle, server.url)

    def test_a_device_key_that_others_can_read_or_that_is_none(self, bundle, server, tmp_path, monkeypatch):
        monkeypatch.setattr("sfumato.deploy.device_key._PATIENCE", 0.0)
        path = tmp_path / "device.key"
        assert load_device_key(path) == load_device_key(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert load_device_key(tmp_path / "other.key") != load_device_key(path)
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="others may read .*chmod 600"):
            client_of(bundle, server.url, device_key=path)
        for data in (b"", bytes(32), os.urandom(31), os.urandom(33)):
            (tmp_path / "bad").write_bytes(data)
            (tmp_path / "bad").chmod(0o600)
            with pytest.raises(ConfigError, match="not a key of 32 random bytes"):
                client_of(bundle, server.url, device_key=tmp_path / "bad")
        with pytest.raises(StorageError, match="cannot make the device key"):
            client_of(bundle, server.url, device_key=path / "below")

    def test_a_device_without_a_home_folder(self, bundle, server, monkeypatch):
        def no_home(self):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", no_home)
        with pytest.raises(ConfigError, match="no home folder .* --device-key"):
            client_of(bundle, server.url, device_key=None)
        client_of(bundle, server.url, device_key=KEY).close()


WRONG_ANSWERS = {
    "nothing": [],
    "another name": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}],
    "too few classes": [{"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [0] * 3}],
    "too many rows": [{"name": "logits", "datatype": "FP32", "shape": [2, 4], "data": [0] * 8}],
    "another type": [{"name": "logits", "datatype": "INT64", "shape": [1, 4], "data": [0] * 4}],
    "an unknown type": [{"name": "logits", "datatype": "BYTES", "shape": [1, 4], "data": ["a"] * 4}],
    "fewer values": [{"name": "logits", "datatype": "FP32", "shape": [1, 4], "data": [0] * 3}],
    "null": [{"name": "logits", "datatype": "FP32", "shape": [1, 4], "data": [None] * 4}],
    "a class too high": [{"name": "indices", "datatype": "INT64", "shape": [1, 1], "data": [CLASSES]}],
    "a class below 0": [{"name": "indices", "datatype": "INT64", "shape": [1, 1], "data": [-1]}],
    "no class": [{"name": "indices", "datatype": "INT64", "shape": [1, 0], "data": []}],
}


class TestAnswers:
    def answer(self, bundle, outputs, count=1):
        body = json.dumps({"id": ID, "outputs": outputs}).encode()
        with recording(lambda *_: (200, {}, body)) as server, client_of(bundle, server.url) as client:
            return client.predict_batch([pixels_of()] * count)

    def test_top_k_and_label_alone(self, bundle):
        indices = {"name": "indices", "datatype": "INT64", "shape": [1, 2], "data": [2, 0]}
        shares = {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.75, 0.125]}
        (found,) = self.answer(bundle, [indices, shares])
        assert (found.label, found.probabilities) == ("class 2", {"class 2": 0.75, "class 0": 0.125})
        (found,) = self.answer(bundle, [indices | {"shape": [1, 1], "data": [3]}])
        assert (found.label, found.index, found.probabilities) == ("class 3", 3, {})

    @pytest.mark.parametrize("name", WRONG_ANSWERS)
    def test_an_answer_that_does_not_fit(self, bundle, name):
        with pytest.raises(RemoteError) as caught:
            self.answer(bundle, WRONG_ANSWERS[name])
        assert "\n" not in str(caught.value)
