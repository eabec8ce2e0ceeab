"""Between client and server: the same bytes again after a failure, and one sentence for what cannot work."""

import datetime
import json
import os
import select
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from edge_support import ID, KEY, logits_answer, make_bundle, pixels_of, recording

from sfumato.deploy import EdgeClient, connection
from sfumato.errors import ConfigError, RemoteError, SfumatoWarning

LOGITS = [[0.0, 3.0, 1.0, -1.0]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def pauses(monkeypatch):
    """Those that the client would have made."""
    made = []
    monkeypatch.setattr(connection.time, "sleep", made.append)
    return made


def client_of(bundle, url, **settings):
    return EdgeClient(bundle, url, **({"device_key": KEY, "timeout": 60.0} | settings))


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
    "a proxy's time-out": (408, {}, b""),
    "a proxy's page": (502, {}, b"<html>Bad Gateway</html>"),
    "silence": None,
}


class TestHttp:
    @pytest.mark.parametrize("failure", FAILURES)
    def test_a_retry_sends_the_same_bytes_after_a_pause(self, bundle, pauses, failure):
        with recording(failing(2, FAILURES[failure])) as server, client_of(bundle, server.url) as client:
            assert client.predict(pixels_of()).label == "class 1"
        assert len(server.bodies) == 3
        assert len(set(server.bodies)) == 1
        first, second = (1.0, 1.0) if failure == "busy" else (0.05, 0.1)
        assert first <= pauses[0] <= max(first, 0.15)
        assert second <= pauses[1] <= max(second, 0.3)
        assert failure == "busy" or pauses[0] not in (0.05, 0.1, 0.15)  # not all devices at once

    @pytest.mark.parametrize("failure", FAILURES)
    @pytest.mark.usefixtures("pauses")
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
            (200, logits_answer(LOGITS)[2].replace(ID.encode(), b"0" * 32), "the id of another query, or none"),
            (200, logits_answer(LOGITS)[2].replace(b'"id"', b'"di"'), "the id of another query, or none"),
            (302, b"moved", "refuses the query .302"),
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
        head = json.dumps({"id": ID, "outputs": [output]}).encode()
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
        began = time.monotonic()
        refused(client_of(bundle, "http://no-such-host.invalid", timeout=3), "is not known|cannot be asked now")
        assert time.monotonic() - began < 30

    def test_half_an_answer_is_none(self, bundle):
        with raw(lambda accepted: (accepted.recv(1 << 16), accepted.sendall(HEAD + b"{}"))) as address:
            refused(client_of(bundle, address, retries=0), "cannot be asked now: IncompleteRead")

    def test_an_endless_answer_is_cut(self, bundle, monkeypatch):
        monkeypatch.setattr(connection, "_LARGEST_ANSWER", 1 << 20)
        with recording(lambda *_: (200, {}, bytes(2 << 20))) as server:
            refused(client_of(bundle, server.url), "larger than 1 MiB")


@contextmanager
def raw(answer):
    """A server of plain sockets: `answer(connection)` in a thread for each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    accepted = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=talk, args=(accepted,), daemon=True).start()

        def talk(accepted):
            with accepted, suppress(OSError):
                answer(accepted)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"


class TestDeadline:
    @pytest.mark.parametrize("sent", [HEAD, b"HTTP/1.1 200 OK\r\nX: "], ids=["in the body", "in the headers"])
    def test_an_answer_byte_by_byte_ends_with_the_query(self, bundle, sent):
        def drip(accepted):
            accepted.recv(1 << 16)
            accepted.sendall(sent)
            for _ in range(100):
                time.sleep(0.1)
                accepted.sendall(b" ")

        began = time.monotonic()
        with raw(drip) as address:
            refused(client_of(bundle, address, timeout=0.5), "no answer within 0.5 s")
        assert time.monotonic() - began < 9  # the answer takes 10

    def test_retries_and_their_pauses_are_part_of_it(self, bundle):
        began = time.monotonic()
        with recording(lambda *_: (503, {"Retry-After": "60"}, b"{}")) as server:
            refused(client_of(bundle, server.url, timeout=30.0), "cannot be asked now: it answers 503")
        assert time.monotonic() - began < 30
        assert len(server.bodies) == 1

    def test_a_name_server_that_says_nothing(self, bundle, monkeypatch):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
        began = time.monotonic()
        refused(client_of(bundle, "http://somewhere", timeout=0.3), "no answer within 0.3 s")
        assert time.monotonic() - began < 25

    def test_a_new_connection_after_a_timeout(self, bundle):
        """The late answer to the first question must not become the answer to the second."""

        late = threading.Event()

        def slow(number, *_):
            if number == 1:
                late.wait(60)
            return logits_answer([[5.0, 0, 0, 0]] if number == 1 else LOGITS)

        with recording(slow) as server, client_of(bundle, server.url, timeout=0.5) as client:
            with pytest.raises(RemoteError, match="no answer within"):
                client.predict(pixels_of())
            client._decoder._timeout = 60
            late.set()
            assert client.predict(pixels_of()).label == "class 1"


class TestForks:
    def test_a_child_neither_uses_nor_closes_its_parents_connection(self, bundle):
        """And waits for no lock that a thread of the parent held when it was made."""
        with recording(lambda *_: logits_answer(LOGITS)) as server, client_of(bundle, server.url) as client:
            client.predict(pixels_of())
            (kept,) = client._decoder._idle
            mine = kept.sock.getsockname()
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                told = client.predict(pixels_of()).label
                (theirs,) = client._decoder._idle
                os.write(writing, json.dumps([told, theirs.sock.getsockname()[1]]).encode())
                os._exit(0)
            assert select.select([reading], [], [], 20)[0]
            told, port = json.loads(os.read(reading, 4096))
            os.waitpid(child, 0)
            assert client.predict(pixels_of()).label == told == "class 1"
            (still,) = client._decoder._idle
            assert still.sock.getsockname() == mine
            assert port != mine[1]
            os.close(reading)
            os.close(writing)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with an authority, and a function that issues certificates, by cryptography."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    now, hour = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    secret = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])

    def issue(name, begins=-1, ends=1, own=None):
        key = own or ec.generate_private_key(ec.SECP256R1())
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins * hour)
            .not_valid_after(now + ends * hour)
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(secret, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(private)
        return folder / f"{name}.pem", folder / f"{name}.key"

    issue("authority", own=secret)
    issue("client")
    return folder, issue


class TestTls:
    @pytest.fixture
    def server(self, authority):
        """Asks for a client certificate of the authority."""
        folder, issue = authority
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*issue("localhost"))
        context.load_verify_locations(folder / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # with 1.3 a refusal may meet the request on its way
        with recording(lambda *_: logits_answer(LOGITS), tls=context) as one:
            yield one

    def test_both_sides_show_a_certificate(self, bundle, server, authority):
        folder, issue = authority
        shown = (folder / "client.pem", folder / "client.key")
        with client_of(bundle, server.url, ca=folder / "authority.pem", cert=shown) as client:
            for _ in range(2):
                assert client.predict(pixels_of()).label == "class 1"
        refused(client_of(bundle, server.url, ca=folder / "authority.pem"), r"want a client certificate \(--cert\)")
        late = client_of(bundle, server.url, ca=folder / "authority.pem", cert=issue("late", -2, -1))
        refused(late, r"does not accept this device's certificate.*EXPIRED.* \(--cert\)")
        assert len(server.bodies) == 2

    @pytest.mark.parametrize(
        ("hours", "host", "known", "said"),
        [
            ((1, 2), "localhost", True, r"not valid yet by this device's clock, which says 20.* UTC; set the clock"),
            ((-2, -1), "localhost", True, "has expired"),
            ((-1, 1), "127.0.0.1", True, "is of another host than 127.0.0.1"),
            ((-1, 1), "localhost", False, "authority that is not known here .* --ca"),
        ],
    )
    def test_what_is_wrong_with_a_certificate(self, bundle, authority, hours, host, known, said):
        folder, issue = authority
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*issue("localhost", *hours))
        with recording(lambda *_: logits_answer(LOGITS), tls=context) as server:
            url = server.url.replace("localhost", host)
            client = client_of(bundle, url, ca=folder / "authority.pem" if known else None)
            refused(client, said)
        assert server.bodies == []

    def test_tls_on_a_plain_port_and_the_reverse(self, bundle):
        alert = b"\x15\x03\x01\x00\x02\x02\x46"
        with recording(lambda *_: logits_answer(LOGITS)) as server:
            refused(client_of(bundle, server.url.replace("http:", "https:")), "does it speak TLS")
        with raw(lambda accepted: (accepted.recv(1 << 16), accepted.sendall(alert))) as address:
            refused(client_of(bundle, address, retries=0), "does not answer in HTTP .*https://|cannot be asked now")
        with raw(lambda accepted: accepted.recv(1 << 16)) as address:
            refused(client_of(bundle, address, retries=0), "if it speaks TLS, write https://")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "ftp://x"}, "no address of an HTTP server"),
        ({"url": "http://"}, "no address of an HTTP server"),
        ({"url": "http://a:b"}, "no address of an HTTP server"),
        ({"url": "http://user:word@host"}, "no address of an HTTP server"),
        ({"transport": "grpc"}, "over http only, not grpc"),
        ({"timeout": 0}, "seconds above 0"),
        ({"retries": -1}, "0 or more retries"),
        ({"token": ""}, "token is empty"),
        ({"token": "a\r\nHost: b"}, "token is empty or holds blanks"),
        ({"ca": "none.pem"}, "is not encrypted; write https://"),
        ({"url": "https://x", "ca": "none.pem"}, "certificates cannot be used"),
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


def test_a_token_in_the_open_is_warned_of(bundle):
    for host in ("127.0.0.1", "localhost", "[::1]"):
        client_of(bundle, f"http://{host}:1", token="s3cret").close()
    with pytest.warns(SfumatoWarning, match="the token travels unencrypted to example.org"):
        client_of(bundle, "http://example.org:1", token="s3cret").close()
    client_of(bundle, "http://example.org:1").close()
