"""What goes wrong between one worker and its clients, each with its expected answer."""

import contextlib
import http.client
import json
import resource
import socket
import threading
import time

import numpy as np
import pytest
from serve_support import (
    ask,
    by_onnxruntime,
    children,
    clients,
    features,
    infer,
    logits_of,
    make_bundle,
    metric,
    process,
    raw,
    running,
    tensor,
    until,
)

from sfumato.cli.main import main
from sfumato.serve.engines import ort

INFER = "/v2/models/tiny/infer"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "tiny")


@pytest.fixture
def gate(monkeypatch):
    """Networks that wait in front of a gate, once it is closed, and count the rows that pass."""
    one = threading.Event()
    one.set()
    one.rows = []
    real = ort.load

    def load(*given):
        run = real(*given)

        def gated(feature):
            assert one.wait(30)
            one.rows.append(len(feature))
            return run(feature)

        return gated

    monkeypatch.setattr(ort, "load", load)
    yield one
    one.set()


def waiting(server, count):
    return lambda: metric(server.rest, "sfumato_queue_requests") == count


def start(count, work):
    """`clients` in the background; joined by calling what is returned."""
    box = []
    thread = threading.Thread(target=lambda: box.extend(clients(count, work)), daemon=True)
    thread.start()

    def join():
        thread.join(60)
        return box

    return join


def busy(server):
    return lambda: server.core.find("tiny").batcher._running_rows == 1


class TestOverload:
    def test_a_full_queue_refuses_and_what_it_holds_is_answered(self, bundle, gate):
        with running(bundle, threads=1, queue=3, max_batch=1, deadline_ms=30_000) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(busy(server))
            accepted = start(3, lambda index: infer(server.rest, features(seed=index)))
            until(waiting(server, 3))
            status, headers, answer = infer(server.rest, features())
            assert (status, headers["retry-after"]) == (429, "1")
            assert answer == {"error": "3 requests wait already; try again a little later"}
            assert ask(server.rest, "/v2/health/ready")[0] == 200
            gate.set()
            answers = first() + accepted()
            assert [answer[0] for answer in answers] == [200] * 4
            for index, (_, _, answer) in enumerate(answers[1:]):
                np.testing.assert_array_equal(logits_of(answer), by_onnxruntime(bundle, features(seed=index)))
            assert metric(server.rest, "sfumato_rejections_total", "busy") == 1

    def test_a_full_queue_refuses_before_the_body_is_read(self, bundle, gate):
        with running(bundle, threads=1, queue=1, max_batch=1, deadline_ms=30_000) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(busy(server))
            second = start(1, lambda _: infer(server.rest, features()))
            until(waiting(server, 1))
            host, _, port = server.rest.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=60) as raw:
                raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
                assert raw.recv(100).startswith(b"HTTP/1.1 429")
            gate.set()
            assert [answer[0] for answer in first() + second()] == [200] * 2

    def test_a_deadline_that_passes_in_the_queue(self, bundle, gate):
        with running(bundle, threads=1, deadline_ms=400) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(busy(server))
            began = time.monotonic()
            status, headers, answer = infer(server.rest, features())
            assert (status, headers["retry-after"]) == (503, "1")
            assert "before the deadline" in answer["error"]
            assert infer(server.rest, features(), parameters={"timeout": 1000})[0] == 503
            assert time.monotonic() - began < 25  # not the 30 that the network takes
            gate.set()
            assert first()[0][0] == 200  # it was running already

    def test_a_clock_that_is_set_back_changes_nothing(self, bundle, gate, monkeypatch):
        with running(bundle, threads=1, deadline_ms=300) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(busy(server))
            late = start(1, lambda _: infer(server.rest, features()))
            until(waiting(server, 1))
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() - 86_400)
            assert late()[0][0] == 503
            gate.set()
            assert first()[0][0] == 200
            assert infer(server.rest, features())[0] == 200
            assert metric(server.rest, "sfumato_request_seconds_sum") < 60

    def test_who_waits_longest_makes_room_and_who_is_answered_stays(self, bundle, gate):
        with running(bundle, threads=1, max_connections=3, deadline_ms=30_000) as server:
            gate.clear()
            answered = start(1, lambda _: infer(server.rest, features()))
            until(busy(server))
            host, _, port = server.rest.rpartition(":")
            silent = [socket.create_connection((host, int(port)), timeout=60) for _ in range(6)]
            for _ in range(4):
                assert ask(server.rest, "/v2/health/ready")[0] == 200
            assert [one.recv(10) for one in silent[:4]] == [b""] * 4
            gate.set()
            assert [answer[0] for answer in answered()] == [200]
            for one in silent:
                one.close()


class TestSlowClients:
    @pytest.fixture
    def server(self, bundle):
        with running(bundle, client_timeout=0.4) as one:
            yield one

    @pytest.mark.parametrize(
        "part",
        [
            b"",
            b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Le",
            b"\r\n",
            b"POST " + INFER.encode() + b' HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"inputs": [',
            b"POST " + INFER.encode() + b' HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"inp',
        ],
        ids=["nothing", "half a head", "an empty line", "half a body", "half a chunk"],
    )
    def test_half_a_request_and_a_stall(self, server, part):
        began = time.monotonic()
        said = raw(server.rest, part)
        seconds = time.monotonic() - began
        assert said.startswith(b"HTTP/1.1 408")
        assert list(json.loads(said.partition(b"\r\n\r\n")[2])) == ["error"]
        assert 0.3 < seconds < 30
        assert infer(server.rest, features())[0] == 200

    def test_a_slow_network_is_no_slow_client(self, gate, server):
        gate.clear()
        answered = start(1, lambda _: infer(server.rest, features()))
        until(busy(server))
        time.sleep(0.6)
        gate.set()
        assert [answer[0] for answer in answered()] == [200]

    def test_a_stall_after_an_answered_request(self, server):
        said = raw(server.rest, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v2 HT", pause=0.1)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in said

    def test_a_head_without_end(self, server):
        host, _, port = server.rest.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            raw.sendall(b"GET /v2 HTTP/1.1\r\n")
            try:
                for _ in range(100):
                    raw.sendall(b"x-filler: " + b"a" * 4000 + b"\r\n")
                said = raw.recv(4096)
            except ConnectionError:
                said = b""
        assert not said or said.startswith(b"HTTP/1.1 431")
        assert infer(server.rest, features())[0] == 200

    def test_a_client_that_left_the_queue_costs_no_inference(self, bundle, gate):
        with running(bundle, threads=1, max_batch=1, deadline_ms=30_000) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(busy(server))
            body = json.dumps({"inputs": [tensor(features(3))]})
            left = [http.client.HTTPConnection(server.rest) for _ in range(5)]
            for connection in left:
                connection.request("POST", INFER, body)
            until(waiting(server, 5))
            for connection in left:
                connection.close()
            until(waiting(server, 0))
            gate.rows.clear()
            gate.set()
            assert first()[0][0] == 200
            assert infer(server.rest, features(2))[0] == 200
            assert gate.rows == [1, 2]
            assert metric(server.rest, "sfumato_rejections_total", "gone") == 5

    def test_a_client_that_does_not_read_is_shown_out(self, server):
        host, _, port = server.rest.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setblocking(False)
            sent, request = 0, b"GET /openapi.json HTTP/1.1\r\n\r\n" * 100
            end = time.monotonic() + 20
            while time.monotonic() < end:
                try:
                    sent += one.send(request)
                except BlockingIOError:
                    time.sleep(0.02)
                except ConnectionError:
                    break
            assert time.monotonic() < end
            assert sent < 8 << 20  # the rest is held up in the client, not in the server
        assert infer(server.rest, features())[0] == 200


def test_silent_deaf_and_greedy_clients_cost_neither_the_others_nor_the_memory(bundle):
    """At most 200 descriptors: 300 connections that say nothing, 15 MB of `[]`, pipelines that nobody reads."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))}
    words = ["--no-log-requests", "--threads", "1", "--drain-seconds", "0", "--client-timeout", "600"]
    with process(str(bundle), *words, **limit) as one:
        address = one.wait_for("listening")["rest"]
        assert any("allow more open files" in event["event"] for event in one.events)
        (pid,) = children(one.process.pid)
        assert infer(address, features())[0] == 200
        idle = peak_bytes(pid)
        host, port = address.split(":")
        with contextlib.ExitStack() as stack:
            for index in range(300):
                silent = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
                if index % 30 == 0:
                    silent.setblocking(False)
                    with contextlib.suppress(OSError):
                        silent.send(b"GET /openapi.json HTTP/1.1\r\n\r\n" * 2000)
            assert ask(address, "/v2/health/ready")[0] == 200
            greedy = b'{"inputs": [' + b"[]," * 5_000_000 + b"[]]}"
            assert ask(address, INFER, greedy)[0] == 400
            assert infer(address, features())[0] == 200
        assert peak_bytes(pid) - idle < 64 << 20


def peak_bytes(pid):
    with open(f"/proc/{pid}/status") as handle:
        (line,) = [line for line in handle if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def test_a_large_answer_comes_whole_and_to_a_slow_reader_too(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    with running(bundle, max_rows=4096) as server:
        feature = features(4096)
        expected = by_onnxruntime(bundle, feature)
        asked = {"inputs": [tensor(feature)], "parameters": {"binary_data_output": True}}
        _, headers, content = ask(server.rest, INFER, asked)
        assert content[int(headers["inference-header-content-length"]) :] == expected.tobytes()
        np.testing.assert_array_equal(logits_of(infer(server.rest, feature)[2]), expected)


def test_requests_behind_one_another_are_answered_in_their_order(bundle):
    with running(bundle, max_request_bytes=10 << 20) as server:
        parts = []
        for index in range(40):
            body = json.dumps({"inputs": [tensor(features(1 + index))], "id": f"q{index}"}).encode()
            parts.append(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body)) + body)
        parts.append(b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n")
        for sent in ([b"".join(parts)], parts):
            said = raw(server.rest, *sent)
            assert [said.find(b'"q%d"' % index) for index in range(40)] == sorted(
                said.find(b'"q%d"' % index) for index in range(40)
            )
            assert said.count(b"HTTP/1.1 200") == 41


def test_what_a_refusal_leaves_unread_does_not_break_the_connection(bundle):
    with running(bundle, max_request_bytes=2048) as server:
        connection = http.client.HTTPConnection(server.rest, timeout=60)
        many, some = b"x" * 5_000_000, b"x" * 300_000
        refused = ((INFER, many, 413), ("/v2/models/no/infer", some, 404), ("/v2", some, 405), (INFER, b"{", 400))
        for path, body, status in (*refused, *refused):
            connection.request("POST", path, body)
            response = connection.getresponse()
            assert (response.status, list(json.loads(response.read()))) == (status, ["error"])
        connection.request("GET", "/v2")
        assert connection.getresponse().status == 200
        head = f"POST {INFER} HTTP/1.1\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n".encode()
        said = raw(server.rest, head)
        assert said.startswith(b"HTTP/1.1 413")
        assert b"100 Continue" not in said


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_head_is_answered_wherever_get_is(bundle, method):
    with running(bundle) as server:
        for path in (
            "/v2",
            "/v2/",
            "/v2/health/live",
            "/v2/health/ready/",
            "/v2/models/tiny",
            "/metrics",
            "/openapi.json",
        ):
            said = raw(server.rest, f"{method} {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            head, _, body = said.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert bool(body) == (method == "GET")


class TestDrain:
    def test_accepted_requests_are_answered_and_readiness_goes_first(self, bundle, gate):
        with running(bundle, threads=1, max_batch=1, drain_seconds=0.4, deadline_ms=30_000) as server:
            gate.clear()
            join = start(3, lambda _: infer(server.rest, features()))
            until(waiting(server, 2))
            stopping = start(1, lambda _: server.stop())
            until(lambda: not server.core.ready)
            assert ask(server.rest, "/v2/health/ready")[::2] == (503, {"ready": False})
            assert ask(server.rest, "/v2/health/live")[0] == 200
            assert ask(server.rest, "/v2/models/tiny/ready")[0] == 503
            until(lambda: server.door.leaving)
            gate.set()
            assert [answer[0] for answer in join()] == [200] * 3
            assert stopping() == [None]
            with pytest.raises(OSError):
                infer(server.rest, features())

    def test_a_worker_that_retires_says_it_is_ready_to_the_last(self, bundle, gate):
        with running(bundle, threads=1, max_batch=1, deadline_ms=30_000) as server:
            kept = http.client.HTTPConnection(server.rest, timeout=60)
            kept.connect()
            gate.clear()
            join = start(2, lambda _: infer(server.rest, features()))
            until(waiting(server, 1))
            stopping = start(1, lambda _: server.stop(retire=True))
            until(lambda: server.door.leaving)
            kept.request("GET", "/v2/health/ready")
            response = kept.getresponse()
            assert (response.status, response.getheader("connection")) == (200, "close")
            gate.set()
            assert [answer[0] for answer in join()] == [200] * 2
            assert stopping() == [None]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/nowhere/at/all"], "is not a bundle"),
        (["BUNDLE", "--threads", "-1"], "at least 0"),
        (["BUNDLE", "--port", "0", "--token-file", "/nowhere"], "cannot read the token file"),
        (["BUNDLE", "--port", "TAKEN"], "choose another --port"),
        (["BUNDLE", "--port", "0", "--host", "no.such.host.invalid"], "choose another --port or --host"),
    ],
)
def test_mistakes_end_with_one_sentence(bundle, words, sentence, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [{"BUNDLE": str(bundle), "TAKEN": port}.get(word, word) for word in words]
        assert main(["serve", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sfumato: error:")]
    assert sentence in line
