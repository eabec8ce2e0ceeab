"""Generations of workers as users start them: reloads, deaths, the end."""

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from serve_certificates import Authority
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
    running,
    tensor,
    until,
)

from sfumato.cli.main import main
from sfumato.errors import ConfigError
from sfumato.files import write_json
from sfumato.serve import reload

INFER = "/v2/models/tiny/infer"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "tiny")


def versions(address):
    return ask(address, "/v2/models/tiny")[2]["versions"]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def asking(address, stop, seen):
    """A client that keeps its connection until it is told to close it; what it hears goes into `seen`."""
    connection = None
    while not stop.is_set():
        try:
            if connection is None:
                connection = http.client.HTTPConnection(address, timeout=60)
                connection.connect()
        except ConnectionRefusedError:
            return "refused"
        connection.request("POST", INFER, json.dumps({"inputs": [tensor(features())]}))
        response = connection.getresponse()  # raises if an accepted request is lost
        answer = json.loads(response.read())
        assert response.status == 200, answer
        seen.append(answer["model_version"])
        if response.getheader("connection") == "close":
            connection.close()
            connection = None
    return "stopped"


def in_background(count, work):
    box = []
    thread = threading.Thread(target=lambda: box.extend(clients(count, work)), daemon=True)
    thread.start()
    return lambda: (thread.join(60), box)[1]


class TestReload:
    def test_under_load_no_request_is_lost_and_nobody_goes_back(self, bundle, tmp_path):
        at = tmp_path / "at.json"
        with process(str(bundle), "--json", str(at), "--no-log-requests", "--workers", "2", "--threads", "1") as one:
            address = one.wait_for("listening")["rest"]
            stop, seen = threading.Event(), [[] for _ in range(4)]
            join = in_background(4, lambda index: asking(address, stop, seen[index]))
            for number in (2, 3):
                until(lambda: min(map(len, seen)) > 20)
                make_bundle(bundle, version=str(number), seed=number)
                assert reload(at) == number
            until(lambda: all(answers[-1] == "3" for answers in seen))
            stop.set()
            assert join() == ["stopped"] * 4
            for answers in seen:
                assert answers == sorted(answers)
            np.testing.assert_array_equal(logits_of(infer(address, features())[2]), by_onnxruntime(bundle, features()))
            until(lambda: len(children(one.process.pid)) == 2)
            assert metric(address, "sfumato_generation") == 3

    def test_two_in_a_row_end_at_the_last_state(self, bundle):
        with process(str(bundle)) as one:
            address = one.wait_for("listening")["rest"]
            for number in range(2, 6):
                make_bundle(bundle, version=str(number))
                one.process.send_signal(signal.SIGHUP)
                time.sleep(0.05)
            until(lambda: versions(address) == ["5"])

    def test_half_good_input_changes_nothing_and_says_why(self, bundle, tmp_path, capsys):
        authority = Authority(tmp_path / "pki")
        cert, key = authority.issue("server")
        tokens, at = tmp_path / "tokens", tmp_path / "at.json"
        tokens.write_text("a" * 32)
        context = ssl.create_default_context(cafile=authority.certificate)

        def served(token):
            request = urllib.request.Request(f"https://{address}/v2/models/tiny", headers={"Authorization": token})
            try:
                return json.load(urllib.request.urlopen(request, context=context, timeout=60))["versions"]
            except urllib.error.HTTPError as error:
                return error.code

        words = ["--tls-cert", cert, "--tls-key", key, "--token-file", tokens, "--json", at]
        with process(str(bundle), *map(str, words)) as one:
            address = one.wait_for("listening")["rest"]
            make_bundle(bundle, version="2")
            tokens.write_text("b" * 32)
            good = cert.read_bytes()
            cert.write_text("half written")
            assert main(["reload", str(at)]) == 2
            assert "goes on with what it has" in capsys.readouterr().err
            assert (served("Bearer " + "a" * 32), served("Bearer " + "b" * 32)) == (["1"], 401)
            assert one.wait_for("reload failed")["level"] == "error"
            cert.write_bytes(good)
            network = (bundle / "decoder.onnx").read_bytes()
            (bundle / "decoder.onnx").write_bytes(network[:-10])
            assert main(["reload", str(at)]) == 2
            (bundle / "decoder.onnx").write_bytes(network)
            assert main(["reload", str(at)]) == 0
            assert (served("Bearer " + "a" * 32), served("Bearer " + "b" * 32)) == (401, ["2"])

    def test_a_withdrawn_authority_is_out_and_the_new_one_in(self, bundle, tmp_path):
        old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
        cert, key = new.issue("server")
        trusted, at = tmp_path / "devices.pem", tmp_path / "at.json"
        shutil.copy(old.certificate, trusted)

        def enters(device):
            context = ssl.create_default_context(cafile=new.certificate)
            context.load_cert_chain(*device)
            try:
                return urllib.request.urlopen(f"https://{address}/v2", context=context, timeout=60).status == 200
            except OSError:
                return False

        devices = old.issue("device"), new.issue("device")
        words = ["--tls-cert", cert, "--tls-key", key, "--client-ca", trusted, "--json", at]
        with process(str(bundle), *map(str, words)) as one:
            address = one.wait_for("listening")["rest"]
            assert list(map(enters, devices)) == [True, False]
            shutil.copy(new.certificate, trusted)
            reload(at)
            assert list(map(enters, devices)) == [False, True]

    def test_it_waits_for_what_was_read_after_it_was_called(self, tmp_path, monkeypatch):
        """Not for the outcome of another reload, which may have read the disk before the caller changed it."""
        at, before = tmp_path / "at.json", time.monotonic()

        def announce(generation, read_at):
            write_json(at, {"pid": 2**22 + 1, "read_at": read_at, "generation": generation, "error": ""})

        def hang_up(*_):
            announce(2, before)
            threading.Timer(0.1, lambda: announce(3, time.monotonic())).start()

        announce(1, 0.0)
        monkeypatch.setattr("sfumato.serve.supervisor.os.kill", hang_up)
        assert reload(at) == 3

    def test_without_a_server_a_sentence_says_so(self, tmp_path):
        at = tmp_path / "at.json"
        with pytest.raises(ConfigError, match="sfumato serve --json"):
            reload(at)
        at.write_text(json.dumps({"pid": 2**22 + 1, "read_at": 1.0}))
        with pytest.raises(ConfigError, match="does not run any more"):
            reload(at)
        with subprocess.Popen(["sleep", "60"]) as other:  # another program has the number by now
            at.write_text(json.dumps({"pid": other.pid, "read_at": 1.0}))
            with pytest.raises(ConfigError, match="does not run any more"):
                reload(at)
            assert other.poll() is None
            other.kill()


class TestDeath:
    def test_a_killed_worker_is_replaced_by_its_generation_whatever_the_disk_holds(self, bundle):
        words = ["--workers", "2", "--threads", "1", "--drain-seconds", "0", "--no-log-requests"]
        with process(str(bundle), *words) as one:
            address = one.wait_for("listening")["rest"]
            expected = by_onnxruntime(bundle, features())
            for damage in (lambda: make_bundle(bundle, version="2", seed=5), lambda: shutil.rmtree(bundle)):
                damage()
                until(lambda: len(children(one.process.pid)) == 2)
                pids = children(one.process.pid)
                asked = metric(address, "sfumato_requests_total")
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                until(lambda gone=set(pids): len(set(children(one.process.pid)) - gone) == 2)
                for _ in range(20):
                    np.testing.assert_array_equal(logits_of(infer(address, features())[2]), expected)
                assert metric(address, "sfumato_requests_total") == asked + 20  # of all, dead or alive
            assert one.wait_for("worker ended", 4)["code"] == -signal.SIGKILL
            pids = children(one.process.pid)
            os.kill(one.process.pid, signal.SIGKILL)
            until(lambda: not any(alive(pid) for pid in pids))

    def test_a_killed_server_gives_a_clean_error_and_a_new_one_serves(self, bundle, tmp_path):
        with process(str(bundle), "--json", str(tmp_path / "at.json")) as one:
            address = one.wait_for("listening")["rest"]
            assert json.loads((tmp_path / "at.json").read_text())["rest"] == address
            workers = children(one.process.pid)
            one.process.kill()
            one.process.wait(10)
            until(lambda: not any(map(alive, workers)))
            with pytest.raises(ConnectionError):
                infer(address, features())
        with running(bundle, port=int(address.rpartition(":")[2])) as server:
            assert infer(server.rest, features())[0] == 200

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
    def test_a_bad_bundle_ends_a_service_that_has_not_begun(self, bundle, damage):
        damage(bundle / "decoder.onnx")
        with process(str(bundle), "--workers", "2") as one:
            assert one.process.wait(120) == 2
            one._reader.join(5)
            (line,) = one.text.splitlines()
            assert line.startswith("sfumato: error:")


def test_sigterm_under_load_loses_no_accepted_request(bundle):
    with process(str(bundle), "--drain-seconds", "0.4") as one:
        address = one.wait_for("listening")["rest"]
        seen = [[] for _ in range(6)]
        join = in_background(6, lambda index: asking(address, threading.Event(), seen[index]))
        until(lambda: min(map(len, seen)) > 10)
        one.process.send_signal(signal.SIGTERM)
        # Who connects in the instant in which the socket closes is reset by the kernel before it was accepted.
        results = join()
        assert not [result for result in results if result != "refused" and not isinstance(result, ConnectionError)]
        assert results.count("refused") >= 5
        assert one.process.wait(120) == 0
        one.wait_for("stopped")
        logged = [event["status"] for event in one.events if event["event"] == "request"]
        assert logged == ["200"] * sum(map(len, seen))
        order = [event["event"] for event in one.events if event["event"] != "request"]
        assert order == ["listening", "draining", "stopped"]
