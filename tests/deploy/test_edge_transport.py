"""Between client and server: the same bytes again after a failure, and one sentence for what cannot work."""

import json
import socket
import ssl
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
from edge_support import FEATURE, KEY, logits_answer, make_bundle, pixels_of, recording
from tritonclient.grpc import service_pb2

from sfumato.deploy import EdgeClient
from sfumato.deploy.manifest import NoiseSpec
from sfumato.deploy.transport import base
from sfumato.errors import ConfigError, RemoteError, SfumatoWarning

LOGITS = [[0.0, 3.0, 1.0, -1.0]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("fresh"), noise=NoiseSpec(0.1, "fresh"))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(base.time, "sleep", lambda seconds: None)


def client_of(bundle, url, **settings):
    return EdgeClient(bundle, url, **({"device_key": KEY, "timeout": 5.0} | settings))


def refused(client, said):
    with client, pytest.raises(RemoteError, match=said) as caught:
        client.predict(pixels_of())
    assert "\n" not in str(caught.value)


def failing(times, first):
    """Answers `first` so many times, then rightly."""
    return lambda number, *_: first if number <= times else logits_answer(LOGITS)


FAILURES = {
    "busy": (429, {"Retry-After": "1"}, b'{"error": "queue full"}'),
    "overloaded": (503, {}, b'{"error": "deadline"}'),
    "a proxy's page": (502, {}, b"<html>Bad Gateway</html>"),
    "silence": None,
}


class TestHttp:
    @pytest.mark.parametrize("failure", FAILURES)
    def test_a_retry_sends_the_same_bytes_even_with_fresh_noise(self, fresh, failure):
        with recording(failing(2, FAILURES[failure])) as server, client_of(fresh, server.url, budget=1) as client:
            assert client.predict(pixels_of()).label == "class 1"
        assert len(server.bodies) == 3
        assert len(set(server.bodies)) == 1

    @pytest.mark.parametrize("failure", FAILURES)
    def test_retries_come_to_an_end(self, bundle, failure):
        with recording(failing(99, FAILURES[failure])) as server, client_of(bundle, server.url, retries=2) as client:
            with pytest.raises(RemoteError, match="cannot be asked now") as caught:
                client.predict(pixels_of())
            assert "\n" not in str(caught.value)
        assert len(server.bodies) == 3

    def test_an_idle_connection_that_the_server_closed_is_opened_again(self, bundle):
        def answer(number, *_):
            status, headers, data = logits_answer(LOGITS)
            return status, headers | {"Connection": "close"} if number == 1 else headers, data

        with recording(answer) as server, client_of(bundle, server.url, retries=0) as client:
            for _ in range(3):
                assert client.predict(pixels_of()).label == "class 1"
        assert len(server.bodies) == 3

    @pytest.mark.parametrize(
        ("status", "body", "said"),
        [
            (401, b"", "refuses the token"),
            (403, b"", "refuses the token"),
            (404, b'{"error": "no model small"}', "does not serve the model 'small' in version 1 .no model small."),
            (400, b'{"error": "wrong\\n shape"}', r"refuses the query \(400: wrong shape\)"),
            (413, b'{"error": "too large"}', "413: too large"),
            (500, b"\xff\xfe", "refuses the query .500"),
            (200, b"", "not one of the Open Inference Protocol"),
            (200, b"<html>", "not one of the Open Inference Protocol"),
            (200, b"[]", "not one of the Open Inference Protocol"),
            (200, b"[" * 10_000, "not one of the Open Inference Protocol"),
            (200, b'{"outputs": [{}]}', "not one of the Open Inference Protocol"),
        ],
    )
    def test_what_will_not_work_is_asked_once(self, bundle, status, body, said):
        with recording(lambda *_: (status, {}, body)) as server, client_of(bundle, server.url) as client:
            with pytest.raises(RemoteError, match=said) as caught:
                client.predict(pixels_of())
            assert "\n" not in str(caught.value)
        assert len(server.bodies) == 1

    @pytest.mark.parametrize("length", ["-1", "100000", "x"])
    def test_a_header_length_that_is_wrong(self, bundle, length):
        answer = (200, {"Inference-Header-Content-Length": length}, logits_answer(LOGITS)[2])
        with recording(lambda *_: answer) as server:
            refused(client_of(bundle, server.url), "not one of")

    def test_a_binary_answer(self, bundle):
        logits = np.float32(LOGITS)
        output = {"name": "logits", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
        head = json.dumps({"outputs": [output]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        for raw, right in ((logits.tobytes(), True), (logits.tobytes()[:12], False)):
            with (
                recording(lambda *_, raw=raw: (200, headers, head + raw)) as server,
                client_of(bundle, server.url) as client,
            ):
                if right:
                    assert client.predict(pixels_of()).label == "class 1"
                else:
                    with pytest.raises(RemoteError):
                        client.predict(pixels_of())

    def test_nobody_there_and_nobody_answering(self, bundle):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with client_of(bundle, url) as client, pytest.raises(RemoteError, match="refused"):
                client.predict(pixels_of())
            listener.listen()
            refused(client_of(bundle, url, timeout=0.1, retries=1), r"no answer within 0.1 s")

    def test_an_endless_answer_is_cut(self, bundle, monkeypatch):
        from sfumato.deploy.transport import http

        monkeypatch.setattr(http, "_LARGEST_ANSWER", 1 << 20)
        with recording(lambda *_: (200, {}, bytes(2 << 20))) as server:
            refused(client_of(bundle, server.url), "larger than 1 MiB")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, a certificate for localhost and one for a client, by cryptography."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    for name in ("authority", "localhost", "client"):
        key = authority if name == "authority" else ec.generate_private_key(ec.SECP256R1())
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(secret)
    return folder


class TestTls:
    @pytest.fixture
    def server(self, certificates):
        """Asks for a client certificate of the authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "localhost.pem", certificates / "localhost.key")
        context.load_verify_locations(certificates / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        with recording(lambda *_: logits_answer(LOGITS), tls=context) as one:
            yield one

    def test_both_sides_show_a_certificate(self, bundle, server, certificates):
        shown = (certificates / "client.pem", certificates / "client.key")
        with client_of(bundle, server.url, ca=certificates / "authority.pem", cert=shown) as client:
            assert client.predict(pixels_of()).label == "class 1"

    def test_an_unknown_authority_another_name_and_no_certificate(self, bundle, server, certificates):
        shown = (certificates / "client.pem", certificates / "client.key")
        ca = certificates / "authority.pem"
        refused(client_of(bundle, server.url, cert=shown), r"is not accepted .*give the authority .* --ca")
        refused(
            client_of(bundle, server.url.replace("localhost", "127.0.0.1"), ca=ca, cert=shown),
            "is not accepted .*127.0.0.1",
        )
        with client_of(bundle, server.url, ca=ca, retries=0) as client, pytest.raises(RemoteError):
            client.predict(pixels_of())
        assert server.bodies == []


class Service:
    """A gRPC server with the stock client's own messages."""

    def __init__(self, answer):
        self.answer, self.requests, self.metadata = answer, [], []

    def __call__(self, data, context):
        self.requests.append(data)
        self.metadata.append(dict(context.invocation_metadata()))
        return self.answer(len(self.requests), service_pb2.ModelInferRequest.FromString(data), context)


@pytest.fixture
def rpc():
    servers = []

    def start(answer):
        service = Service(answer)
        method = grpc.unary_unary_rpc_method_handler(service)  # bytes in, bytes out
        server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})
        server.add_generic_rpc_handlers((handler,))
        service.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        servers.append(server)
        return service

    yield start
    for server in servers:
        server.stop(None)


def grpc_logits(typed=False):
    answer = service_pb2.ModelInferResponse(model_name="small")
    output = answer.outputs.add(name="logits", datatype="FP32", shape=[1, 4])
    if typed:
        output.contents.fp32_contents.extend(LOGITS[0])
    else:
        answer.raw_output_contents.append(np.float32(LOGITS).tobytes())
    return answer.SerializeToString()


class TestGrpc:
    @pytest.mark.parametrize("typed", [False, True])
    def test_what_is_sent_is_what_the_protocol_says(self, bundle, rpc, typed):
        service = rpc(lambda *_: grpc_logits(typed))
        with client_of(bundle, service.url, transport="grpc", token="s3cret") as client:
            assert client.predict(pixels_of()).label == "class 1"
            wire = client.release([pixels_of()])
        request = service_pb2.ModelInferRequest.FromString(service.requests[0])
        wanted = service_pb2.ModelInferRequest(
            model_name="small", model_version="1", raw_input_contents=[wire.tobytes()]
        )
        wanted.inputs.add(name="feature", datatype="UINT8", shape=[1, *FEATURE])
        assert request == wanted
        assert service.metadata[0]["authorization"] == "Bearer s3cret"

    def test_integers_of_the_typed_form(self, bundle, rpc):
        answer = service_pb2.ModelInferResponse()
        answer.outputs.add(name="indices", datatype="INT64", shape=[1, 2]).contents.int64_contents.extend([3, 0])
        shares = answer.outputs.add(name="probabilities", datatype="FP32", shape=[1, 2])
        shares.contents.fp32_contents.extend([0.5, 0.25])
        service = rpc(lambda *_: answer.SerializeToString())
        with client_of(bundle, service.url, transport="grpc") as client:
            assert client.predict(pixels_of()).probabilities == {"class 3": 0.5, "class 0": 0.25}

    def test_a_retry_sends_the_same_bytes(self, fresh, rpc):
        def answer(number, _, context):
            if number <= 2:
                context.abort(
                    grpc.StatusCode.UNAVAILABLE if number == 1 else grpc.StatusCode.RESOURCE_EXHAUSTED, "full"
                )
            return grpc_logits()

        service = rpc(answer)
        with client_of(fresh, service.url, transport="grpc", budget=1) as client:
            assert client.predict(pixels_of()).label == "class 1"
        assert len(service.requests) == 3
        assert len(set(service.requests)) == 1

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (grpc.StatusCode.UNAUTHENTICATED, "refuses the token"),
            (grpc.StatusCode.NOT_FOUND, "does not serve the model 'small'"),
            (grpc.StatusCode.INVALID_ARGUMENT, r"refuses the query \(INVALID_ARGUMENT: some reason\)"),
        ],
    )
    def test_what_will_not_work_is_asked_once(self, bundle, rpc, code, said):
        service = rpc(lambda _n, _r, context: context.abort(code, "some\nreason"))
        with client_of(bundle, service.url, transport="grpc") as client, pytest.raises(RemoteError, match=said):
            client.predict(pixels_of())
        assert len(service.requests) == 1

    def test_an_answer_that_is_none_and_nobody_there(self, bundle, rpc):
        service = rpc(lambda *_: b"\xff\xff")
        with client_of(bundle, service.url, transport="grpc") as client, pytest.raises(RemoteError, match="not one of"):
            client.predict(pixels_of())
        refused(client_of(bundle, "127.0.0.1:9", transport="grpc", retries=1), r"cannot be asked now: UNAVAILABLE")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "ftp://x"}, "no address of an HTTP server"),
        ({"url": "http://"}, "no address of an HTTP server"),
        ({"url": "http://a:b"}, "no address of an HTTP server"),
        ({"url": "http://user:word@host"}, "no address of an HTTP server"),
        ({"url": "host", "transport": "grpc"}, "no address of a gRPC server"),
        ({"url": "http://host:1", "transport": "grpc"}, "no address of a gRPC server"),
        ({"transport": "carrier pigeon"}, "unknown transport"),
        ({"timeout": 0}, "seconds above 0"),
        ({"retries": -1}, "0 or more retries"),
        ({"token": ""}, "token is empty"),
        ({"token": "a\r\nHost: b"}, "token is empty or holds blanks"),
        ({"ca": "none.pem"}, "is not encrypted; write https://"),
        ({"url": "https://x", "ca": "none.pem"}, "certificates cannot be used"),
        ({"url": "grpcs://x:1", "transport": "grpc", "ca": "none.pem"}, "certificates cannot be read"),
        ({"url": "grpc://x:1", "transport": "grpc", "ca": "none.pem"}, "write grpcs://"),
    ],
)
def test_settings_that_make_no_sense(bundle, settings, said):
    with pytest.raises(ConfigError, match=said) as caught:
        client_of(bundle, **({"url": "http://127.0.0.1:1"} | settings))
    assert "\n" not in str(caught.value)


def test_threads_share_a_client(bundle):
    with recording(lambda *_: logits_answer(LOGITS)) as server, client_of(bundle, server.url) as client:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(client.predict(pixels_of()).label)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["class 1"] * 8


@pytest.mark.parametrize(("transport", "prefix"), [("http", "http://"), ("grpc", "")])
def test_a_token_in_the_open_is_warned_of(bundle, transport, prefix):
    for host in ("127.0.0.1", "localhost", "[::1]"):
        client_of(bundle, f"{prefix}{host}:1", transport=transport, token="s3cret").close()
    with pytest.warns(SfumatoWarning, match="the token travels unencrypted to example.org"):
        client_of(bundle, f"{prefix}example.org:1", transport=transport, token="s3cret").close()
    client_of(bundle, f"{prefix}example.org:1", transport=transport).close()
