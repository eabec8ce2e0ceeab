"""What goes wrong in operation, each with its expected answer."""

import http.client
import json
import os
import signal
import socket
import threading
import time

import grpc
import numpy as np
import pytest
from serve_support import (
    DIM,
    ask,
    by_onnxruntime,
    clients,
    features,
    infer,
    logits_of,
    make_bundle,
    metric,
    process,
    running,
    tensor,
    until,
)
from tritonclient.grpc import service_pb2 as pb

from sfumato.cli.main import main
from sfumato.deploy.server.model import Model

INFER = "/v2/models/tiny/infer"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "tiny")


@pytest.fixture
def gate(monkeypatch):
    """Networks that wait in front of a gate, once it is closed."""
    one = threading.Event()
    one.set()
    real = Model.run

    def run(self, feature):
        assert one.wait(30)
        return real(self, feature)

    monkeypatch.setattr(Model, "run", run)
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


def grpc_infer(address, feature, timeout=20):
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[feature.tobytes()])
    request.inputs.add(name="feature", datatype="FP32", shape=feature.shape)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return pb.ModelInferResponse.FromString(call(request.SerializeToString(), timeout=timeout))


class TestOverload:
    def test_a_full_queue_refuses_and_what_it_holds_is_answered(self, bundle, gate):
        with running(bundle, threads=1, queue=3, max_batch=1, deadline_ms=30_000) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(lambda: server.core.models.find("tiny").batcher._running_rows == 1)
            accepted = start(3, lambda index: infer(server.rest, features(seed=index)))
            until(waiting(server, 3))
            status, headers, answer = infer(server.rest, features())
            assert (status, headers["retry-after"]) == (429, "1")
            assert answer == {"error": "3 requests wait already; try again a little later"}
            with pytest.raises(grpc.RpcError) as caught:
                grpc_infer(server.grpc, features())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert ask(server.rest, "/v2/health/ready")[0] == 200
            gate.set()
            answers = first() + accepted()
            assert [answer[0] for answer in answers] == [200] * 4
            for index, (_, _, answer) in enumerate(answers[1:]):
                np.testing.assert_array_equal(logits_of(answer), by_onnxruntime(bundle, features(seed=index)))
            assert metric(server.rest, "sfumato_rejections_total", "busy") == 2

    def test_a_full_queue_refuses_before_the_body_is_read(self, bundle, gate):
        with running(bundle, threads=1, queue=1, max_batch=1, deadline_ms=30_000) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(lambda: server.core.models.find("tiny").batcher._running_rows == 1)
            second = start(1, lambda _: infer(server.rest, features()))
            until(waiting(server, 1))
            host, _, port = server.rest.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
                assert raw.recv(100).startswith(b"HTTP/1.1 429")
            gate.set()
            assert [answer[0] for answer in first() + second()] == [200] * 2

    def test_a_deadline_that_passes_in_the_queue(self, bundle, gate):
        with running(bundle, threads=1, deadline_ms=100) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(lambda: server.core.models.find("tiny").batcher._running_rows == 1)
            began = time.monotonic()
            status, headers, answer = infer(server.rest, features())
            assert (status, headers["retry-after"]) == (503, "1")
            assert "before the deadline" in answer["error"]
            with pytest.raises(grpc.RpcError) as caught:
                grpc_infer(server.grpc, features())
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert caught.value.details().startswith("no thread was free")
            assert infer(server.rest, features(), parameters={"timeout": 1000})[0] == 503
            assert time.monotonic() - began < 5
            gate.set()
            assert first()[0][0] == 200  # it was running already

    def test_a_clock_that_is_set_back_changes_nothing(self, bundle, gate, monkeypatch):
        with running(bundle, threads=1, deadline_ms=300) as server:
            gate.clear()
            first = start(1, lambda _: infer(server.rest, features()))
            until(lambda: server.core.models.find("tiny").batcher._running_rows == 1)
            late = start(1, lambda _: infer(server.rest, features()))
            until(waiting(server, 1))
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() - 86_400)
            assert late()[0][0] == 503
            gate.set()
            assert first()[0][0] == 200
            assert infer(server.rest, features())[0] == 200
            assert metric(server.rest, "sfumato_request_seconds_sum") < 60

    def test_too_many_connections(self, bundle):
        with running(bundle, max_connections=3) as server:
            host, _, port = server.rest.rpartition(":")
            idle = [socket.create_connection((host, int(port))) for _ in range(3)]
            until(lambda: len(server.service._rest.server_state.connections) == 3)
            assert infer(server.rest, features())[0] == 429
            for one in idle:
                one.close()
            until(lambda: infer(server.rest, features())[0] == 200)


class TestSlowClients:
    @pytest.fixture
    def server(self, bundle):
        with running(bundle, client_timeout=0.4) as one:
            yield one

    def exchange(self, server, *parts, pause=0.0):
        """Send and wait until the server closes; what it said and how long that took."""
        host, _, port = server.rest.rpartition(":")
        began = time.monotonic()
        said = b""
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            for part in parts:
                raw.sendall(part)
                time.sleep(pause)
            while data := raw.recv(4096):
                said += data
        return said, time.monotonic() - began

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
        said, seconds = self.exchange(server, part)
        assert said.startswith(b"HTTP/1.1 408")
        assert list(json.loads(said.partition(b"\r\n\r\n")[2])) == ["error"]
        assert 0.3 < seconds < 5
        assert infer(server.rest, features())[0] == 200

    def test_a_slow_network_is_no_slow_client(self, gate, server):
        gate.clear()
        answered = start(1, lambda _: infer(server.rest, features()))
        until(lambda: server.core.models.find("tiny").batcher._running_rows == 1)
        time.sleep(0.6)
        gate.set()
        assert [answer[0] for answer in answered()] == [200]

    def test_a_stall_after_an_answered_request(self, server):
        said, _ = self.exchange(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v2 HT", pause=0.1)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in said

    def test_a_head_without_end(self, server):
        host, _, port = server.rest.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"GET /v2 HTTP/1.1\r\n")
            try:
                for _ in range(100):
                    raw.sendall(b"x-filler: " + b"a" * 4000 + b"\r\n")
                said = raw.recv(4096)
            except ConnectionError:
                said = b""
        assert not said or said.startswith(b"HTTP/1.1 431")
        assert infer(server.rest, features())[0] == 200

    def test_a_client_that_leaves_before_its_answer(self, bundle, gate):
        with running(bundle, threads=1) as server:
            gate.clear()
            connection = http.client.HTTPConnection(server.rest)
            connection.request("POST", INFER, json.dumps({"inputs": [tensor(features())]}))
            until(lambda: server.core.models.find("tiny").batcher._running_rows == 1)
            connection.close()
            gate.set()
            assert infer(server.rest, features())[0] == 200


class TestReload:
    def test_no_request_is_lost_and_the_new_network_answers(self, bundle):
        old = by_onnxruntime(bundle, features())
        with running(bundle) as server:
            stop = threading.Event()

            def work(_):
                seen = []
                while not stop.is_set():
                    status, _, answer = infer(server.rest, features())
                    assert status == 200, answer
                    seen.append(logits_of(answer).tobytes())
                return seen

            join = start(4, work)
            time.sleep(0.1)
            make_bundle(bundle, seed=7)
            new = by_onnxruntime(bundle, features())
            assert server.do(server.core.reload())
            time.sleep(0.1)
            stop.set()
            seen = join()
            assert infer(server.rest, features())[2]["outputs"][0]["data"] == new.ravel().tolist()
        assert not [answers for answers in seen if isinstance(answers, Exception)]
        assert set().union(*seen) == {old.tobytes(), new.tobytes()}
        for answers in seen:  # no going back
            first = answers.index(new.tobytes())
            assert set(answers[first:]) == {new.tobytes()}

    def test_what_was_accepted_is_answered_by_the_old_network(self, bundle, gate):
        old = by_onnxruntime(bundle, features())
        with running(bundle, threads=1, max_batch=1, deadline_ms=30_000) as server:
            gate.clear()
            join = start(3, lambda _: infer(server.rest, features()))
            until(waiting(server, 2))
            make_bundle(bundle, seed=7)
            reloading = start(1, lambda _: server.do(server.core.reload()))
            time.sleep(0.1)
            gate.set()
            for status, _, answer in join():
                assert status == 200
                np.testing.assert_array_equal(logits_of(answer), old)
            assert reloading() == [True]

    def test_a_bad_bundle_leaves_the_old_one_in_service(self, bundle):
        old = by_onnxruntime(bundle, features())
        with running(bundle) as server:
            (bundle / "decoder.onnx").write_bytes(b"cut off")
            assert not server.do(server.core.reload())
            np.testing.assert_array_equal(logits_of(infer(server.rest, features())[2]), old)
            assert metric(server.rest, "sfumato_reloads_total", "failed") == 1


class TestDrain:
    def test_accepted_requests_are_answered_and_readiness_goes_first(self, bundle, gate):
        with running(bundle, threads=1, max_batch=1, drain_seconds=0.4, deadline_ms=30_000) as server:
            gate.clear()
            join = start(3, lambda _: infer(server.rest, features()))
            until(waiting(server, 2))
            by_grpc = start(1, lambda _: grpc_infer(server.grpc, features()))
            until(waiting(server, 3))
            stopping = start(1, lambda _: server.do(server.service.stop()))
            until(lambda: not server.core.ready)
            assert ask(server.rest, "/v2/health/ready")[::2] == (503, {"ready": False})
            assert ask(server.rest, "/v2/health/live")[0] == 200
            assert ask(server.rest, "/v2/models/tiny/ready")[0] == 503
            until(lambda: server.core.stopping)
            gate.set()
            assert [answer[0] for answer in join()] == [200] * 3
            assert by_grpc()[0].model_name == "tiny"
            assert stopping() == [None]
            with pytest.raises(OSError):
                infer(server.rest, features())


def test_sigterm_under_load_loses_no_accepted_request(bundle):
    expected = by_onnxruntime(bundle, features()).ravel().tolist()
    with process(str(bundle), "--drain-seconds", "0.4") as one:
        address = one.wait_for("listening")["rest"]
        answered = []

        def work(_):
            connection = None
            while True:
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection(address, timeout=20)
                        connection.connect()
                except ConnectionRefusedError:
                    return "refused"
                connection.request("POST", INFER, json.dumps({"inputs": [tensor(features())]}))
                response = connection.getresponse()  # raises if an accepted request is lost
                answer = json.loads(response.read())
                assert response.status == 200
                assert answer["outputs"][0]["data"] == expected
                answered.append(answer["model_version"])
                if response.getheader("connection") == "close":
                    connection.close()
                    connection = None

        join = start(6, work)
        until(lambda: len(answered) > 50)
        one.process.send_signal(signal.SIGTERM)
        # Who connects in the instant in which the socket closes is reset by the kernel before it was accepted.
        results = join()
        lost = [result for result in results if result != "refused" and not isinstance(result, ConnectionError)]
        assert not lost
        assert sum(result == "refused" for result in results) >= 5
        assert one.process.wait(20) == 0
        one.wait_for("stopped")
        logged = [event["status"] for event in one.events if event["event"] == "request"]
        assert logged == ["200"] * len(answered)
        order = [event["event"] for event in one.events if event["event"] != "request"]
        assert order == ["listening", "draining", "stopped"]


def test_a_killed_worker_is_replaced_and_a_killed_supervisor_leaves_no_orphan(bundle):
    words = ["--workers", "2", "--threads", "1", "--drain-seconds", "0", "--no-log-requests"]
    with process(str(bundle), *words) as one:
        one.wait_for("listening", 2)
        rest, by_grpc = one.events[0]["rest"], one.events[0]["grpc"]
        assert one.events[1]["grpc"] == by_grpc
        pids = _children(one.process.pid)
        assert len(pids) == 2
        for index in range(6):
            assert infer(rest, features())[0] == 200
            assert grpc_infer(by_grpc, features(seed=index)).model_name == "tiny"
        os.kill(pids[0], signal.SIGKILL)
        assert one.wait_for("worker ended")["code"] == -signal.SIGKILL
        for _ in range(10):  # the other one serves alone
            assert infer(rest, features())[0] == 200
        one.wait_for("listening", 3)
        assert len(_children(one.process.pid)) == 2
        assert metric(rest, "sfumato_requests_total", 'status="200"', 'transport="rest"') == 16  # of all, dead or alive
        pids = _children(one.process.pid)
        os.kill(one.process.pid, signal.SIGKILL)
        until(lambda: not any(_alive(pid) for pid in pids), 15)


def test_a_killed_server_gives_a_clean_error_and_a_new_one_serves(bundle, tmp_path):
    with process(str(bundle), "--json", str(tmp_path / "at.json")) as one:
        address = one.wait_for("listening")["rest"]
        assert json.loads((tmp_path / "at.json").read_text())["rest"] == address
        one.process.kill()
        one.process.wait(10)
        with pytest.raises(ConnectionError):
            infer(address, features())
    with running(bundle, port=int(address.rpartition(":")[2])) as server:
        assert server.rest == address
        assert infer(server.rest, features())[0] == 200


def test_workers_that_cannot_start_end_with_one_sentence(bundle):
    (bundle / "decoder.onnx").unlink()
    with process(str(bundle), "--workers", "2") as one:
        assert one.process.wait(30) == 2
        one._reader.join(5)
        assert "cannot read" in one.text
        assert "Traceback" not in one.text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/nowhere/at/all"], "is not a bundle"),
        (["BUNDLE", "--threads", "-1"], "at least 0"),
        (["BUNDLE", "--token-file", "/nowhere"], "cannot read the token file"),
        (["BUNDLE", "--port", "TAKEN"], "choose another --port"),
        (["BUNDLE", "--port", "0", "--grpc-port", "TAKEN"], "choose another --grpc-port"),
        (["BUNDLE", "--port", "0", "--grpc-port", "TAKEN", "--workers", "2"], "choose another --grpc-port"),
    ],
)
def test_mistakes_end_with_one_sentence(bundle, words, sentence, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [{"BUNDLE": str(bundle), "TAKEN": port}.get(word, word) for word in words]
        assert main(["serve", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sfumato: error:")]
    assert sentence in line


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as handle:
        return [int(word) for word in handle.read().split()]


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_reload_by_signal(bundle):
    with process(str(bundle), "--drain-seconds", "0") as one:
        address = one.wait_for("listening")["rest"]
        make_bundle(bundle, seed=9)
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("reloaded")
        expected = by_onnxruntime(bundle, features(2))
        assert expected.shape[0] == 2
        assert DIM == 8
        np.testing.assert_array_equal(logits_of(infer(address, features(2))[2]), expected)
