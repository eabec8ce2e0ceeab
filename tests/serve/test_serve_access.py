"""Who is let in, over what, and what is written about it."""

import hmac
import io
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from serve_certificates import Authority
from serve_support import ask, features, infer, make_bundle, metric, raw, running, tensor, until

from sfumato.deploy.signing import new_key, private_key, sign
from sfumato.errors import BundleError, ConfigError
from sfumato.serve import ServeConfig, generation
from sfumato.serve.errors import Refusal
from sfumato.serve.generation import Tokens
from sfumato.serve.logs import Log

GOOD, OTHER = "a-token-of-decent-length", "another-token-of-decent-length"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "tiny")


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# two customers\n{GOOD}\n\n{OTHER}\n")
    return path


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


class TestTokens:
    def test_over_rest(self, bundle, token_file):
        with running(bundle, token_file=token_file) as server:
            for token in (GOOD, OTHER):
                assert ask(server.rest, "/v2", headers=bearer(token))[0] == 200
            body = {"inputs": [tensor(features())]}
            for headers in (
                {},
                bearer(GOOD + "x"),
                bearer(GOOD[:-1]),
                bearer(""),
                {"Authorization": GOOD},
                {"Authorization": f"Basic {GOOD}"},
            ):
                for path, content in (
                    ("/v2", None),
                    ("/metrics", None),
                    ("/v2/models/tiny/infer", body),
                    ("/nowhere", None),
                ):
                    status, found, answer = ask(server.rest, path, content, headers=headers)
                    assert status == 401
                    assert found["www-authenticate"] == "Bearer"
                    assert "bearer token" in answer["error"]
            for path in ("/v2/health/live", "/v2/health/ready"):  # probes have no token
                assert ask(server.rest, path)[0] == 200
            assert metric(server.rest, "sfumato_rejections_total", "unauthenticated", headers=bearer(GOOD)) == 24

    def test_two_headers_are_refused_whatever_they_say(self, bundle, token_file):
        with running(bundle, token_file=token_file) as server:
            for first, second in ((GOOD, OTHER), (GOOD, "wrong"), ("wrong", GOOD)):
                head = f"GET /v2 HTTP/1.1\r\nAuthorization: Bearer {first}\r\nAuthorization: Bearer {second}\r\n"
                assert raw(server.rest, f"{head}Connection: close\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")

    @pytest.mark.parametrize("name", ["Host", "Authorization", "Inference-Header-Content-Length"])
    def test_any_header_that_may_stand_once_is_refused_twice(self, bundle, name):
        with running(bundle) as server:
            for path in ("/v2", "/v2/health/ready", "/v2/models/tiny/infer"):
                head = f"GET {path} HTTP/1.1\r\n{name}: 1\r\n{name.lower()}: 1\r\nConnection: close\r\n\r\n"
                said = raw(server.rest, head.encode())
                assert said.startswith(b"HTTP/1.1 400")
                assert f"more than one {name} header; send one" in said.decode()

    def test_they_are_compared_in_constant_time_with_every_one(self, token_file, monkeypatch):
        compared = []
        real = hmac.compare_digest

        def compare(a, b):
            compared.append((a, b))
            return real(a, b)

        monkeypatch.setattr(generation.hmac, "compare_digest", compare)
        tokens = Tokens(token_file)
        for token in (GOOD, OTHER, "wrong", "é"):
            compared.clear()
            if token in (GOOD, OTHER):
                tokens.check(f"Bearer {token}".encode())
            else:
                with pytest.raises(Refusal) as caught:
                    tokens.check(f"Bearer {token}".encode())
                assert caught.value.reason == "unauthenticated"
            assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 2

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("", "holds no token"),
            ("# nothing\n", "holds no token"),
            ("short\n", "16 characters"),
            ("a token with spaces\n", "spaces"),
        ],
    )
    def test_bad_files(self, tmp_path, text, sentence):
        path = tmp_path / "tokens"
        with pytest.raises(ConfigError, match="cannot read"):
            Tokens(path)
        path.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            Tokens(path)


def https(server, path, *, authority=None, client=None):
    context = ssl.create_default_context(cafile=authority)
    if client is not None:
        context.load_cert_chain(*client)
    with urllib.request.urlopen(f"https://{server.rest}{path}", context=context, timeout=10) as response:
        return json.load(response)


class TestTls:
    def test_certificates_are_checked_and_the_wrong_scheme_is_told(self, bundle, tmp_path):
        authority = Authority(tmp_path / "pki")
        cert, key = authority.issue("server")
        with running(bundle, tls_cert=cert, tls_key=key) as server:
            assert https(server, "/v2", authority=authority.certificate)["name"] == "sfumato"
            with pytest.raises(urllib.error.URLError, match="certificate verify failed"):
                https(server, "/v2")
            assert b"write https://" in raw(server.rest, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert https(server, "/v2/health/ready", authority=authority.certificate) == {"ready": True}
        with running(bundle) as server:
            assert b"write http://" in raw(server.rest, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")

    def test_clients_need_a_certificate_of_the_right_authority_that_has_not_expired(self, bundle, tmp_path):
        authority = Authority(tmp_path / "pki")
        stranger = Authority(tmp_path / "other", "other")
        cert, key = authority.issue("server")
        good = authority.issue("device")
        bad = {"none": None, "expired": authority.issue("old", days=-1), "of another authority": stranger.issue("spy")}
        with running(bundle, tls_cert=cert, tls_key=key, client_ca=authority.certificate) as server:
            for client in bad.values():
                with pytest.raises((OSError, ssl.SSLError)):
                    https(server, "/v2", authority=authority.certificate, client=client)
            assert https(server, "/v2", authority=authority.certificate, client=good)["name"] == "sfumato"

    def test_bad_certificates_end_the_start_with_a_sentence(self, bundle, tmp_path):
        authority = Authority(tmp_path / "pki")
        cert, key = authority.issue("server")
        _, other_key = authority.issue("other")
        expired, its_key = authority.issue("expired", days=-1)
        early, early_key = authority.issue("early", days=10, begins=2)
        junk, both = tmp_path / "junk.pem", tmp_path / "both.pem"
        both.write_bytes(expired.read_bytes() + authority.certificate.read_bytes())
        with running(bundle, tls_cert=cert, tls_key=key, client_ca=both):
            pass  # authorities are being changed
        junk.write_text("junk")
        for settings, sentence in (
            ({"tls_cert": expired, "tls_key": its_key}, "expired on"),
            ({"tls_cert": early, "tls_key": early_key}, "not valid before .* check the clock"),
            ({"tls_cert": cert, "tls_key": other_key}, "no certificate with its private key"),
            ({"tls_cert": junk, "tls_key": key}, "holds no certificate in PEM"),
            ({"tls_cert": cert, "tls_key": tmp_path / "none"}, "No such file"),
            ({"tls_cert": cert, "tls_key": key, "client_ca": junk}, "holds no certificate in PEM"),
            ({"tls_cert": cert, "tls_key": key, "client_ca": expired}, "expired on"),
        ):
            with pytest.raises(ConfigError, match=sentence), running(bundle, **settings):
                pass


class TestBundles:
    def test_a_changed_bundle_is_not_served(self, bundle):
        network = bundle / "decoder.onnx"
        changed = bytearray(network.read_bytes())
        changed[-1] ^= 1
        network.write_bytes(changed)
        with pytest.raises(BundleError, match="not the file that was exported"), running(bundle):
            pass

    def test_a_signature_is_required_where_it_is_asked_for(self, bundle, tmp_path):
        public = new_key(tmp_path / "maker")
        with pytest.raises(BundleError, match="not signed"), running(bundle, require_signature=public):
            pass
        sign(bundle, private_key(tmp_path / "maker"))
        with running(bundle, require_signature=public) as server:
            assert infer(server.rest, features())[0] == 200
        other = new_key(tmp_path / "other")
        with pytest.raises(BundleError, match="was signed by the key"), running(bundle, require_signature=other):
            pass

    def test_a_network_that_does_not_fit_its_manifest(self, bundle, tmp_path):
        from msgspec.structs import replace

        from sfumato.deploy.manifest import FeatureSpec, Manifest

        manifest = Manifest.load(bundle)
        replace(manifest, feature=FeatureSpec("feature", (9,), "FP32")).save(bundle)
        with pytest.raises(BundleError, match="the manifest says"), running(bundle):
            pass

    def test_two_bundles_of_one_name_and_version(self, bundle, tmp_path):
        twin = make_bundle(tmp_path / "twin", seed=3)
        with pytest.raises(ConfigError, match="both tiny version 1"), running(bundle, twin):
            pass

    def test_the_operator_reveals_less_but_never_more(self, bundle, tmp_path):
        with running(bundle, reveal="top_k", top_k=2) as server:
            assert [len(part["data"]) for part in infer(server.rest, features())[2]["outputs"]] == [2, 2]
        label = make_bundle(tmp_path / "label", reveal="label")
        top = make_bundle(tmp_path / "top", reveal="top_k", top_k=2)
        for one, settings in (
            (label, {"reveal": "logits"}),
            (label, {"reveal": "top_k", "top_k": 1}),
            (top, {"reveal": "logits"}),
            (top, {"reveal": "top_k", "top_k": 3}),
            (bundle, {"reveal": "top_k", "top_k": 6}),
        ):
            with pytest.raises(ConfigError, match="more than the bundle allows"), running(one, **settings):
                pass
        with running(top, reveal="label") as server:
            assert [part["name"] for part in infer(server.rest, features())[2]["outputs"]] == ["indices"]


def test_logs_hold_nothing_that_a_client_sent(bundle, token_file):
    stream = io.StringIO()
    with running(bundle, token_file=token_file, log=Log(stream), log_requests=True) as server:
        feature = features()
        secrets = ["private-request-id", GOOD, "private-wrong-token", "private-path", "private-model", "private-tensor"]
        infer_path = "/v2/models/tiny/infer"
        good = {"inputs": [tensor(feature)], "id": secrets[0]}
        assert ask(server.rest, infer_path, good, headers=bearer(GOOD))[0] == 200
        assert ask(server.rest, infer_path, good, headers=bearer(secrets[2]))[0] == 401
        assert ask(server.rest, f"/{secrets[3]}", headers=bearer(GOOD))[0] == 404
        assert ask(server.rest, f"/v2/models/{secrets[4]}/infer", good, headers=bearer(GOOD))[0] == 404
        assert (
            ask(server.rest, infer_path, {"inputs": [tensor(feature, name=secrets[5])]}, headers=bearer(GOOD))[0] == 400
        )
        until(lambda: stream.getvalue().count('"request"') == 3)
        _, _, metrics = ask(server.rest, "/metrics", headers=bearer(GOOD))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line["event"] for line in lines} == {"request"}
    assert [line["status"] for line in lines if line["event"] == "request"] == ["200", "404", "400"]
    for text in (stream.getvalue(), metrics.decode()):
        assert not [secret for secret in secrets if secret in text]
        assert not [value for value in feature.ravel().tolist() if str(value)[:8] in text]


def test_an_unforeseen_error_is_logged_without_its_text(bundle, monkeypatch):
    stream = io.StringIO()
    with running(bundle, log=Log(stream)) as server:

        def fail(*_):
            raise ValueError("private-value")

        monkeypatch.setattr(server.core, "find", fail)
        status, _, answer = infer(server.rest, features())
        assert (status, answer) == (500, {"error": "the server failed on this request"})
        monkeypatch.undo()
        assert infer(server.rest, features())[0] == 200
    failures = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "failure"]
    assert [line["error"] for line in failures] == ["ValueError"]
    assert "private-value" not in stream.getvalue()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bundles": ()}, "no bundle"),
        ({"workers": 0}, "at least 1"),
        ({"max_batch": 0}, "at least 1"),
        ({"max_request_bytes": 10}, "at least 1024"),
        ({"deadline_ms": 0}, "above 0"),
        ({"client_timeout": float("nan")}, "a finite number"),
        ({"drain_seconds": -1}, "at least 0"),
        ({"port": 70000}, "below 65536"),
        ({"tls_cert": Path("a")}, "belong together"),
        ({"client_ca": Path("a")}, "mutual TLS"),
        ({"reveal": "top_k"}, "belong together"),
        ({"top_k": 3}, "belong together"),
        ({"reveal": "top_k", "top_k": 0}, "at least 1"),
    ],
)
def test_settings_without_meaning(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ServeConfig(**({"bundles": (Path("a"),)} | settings))
