"""The load measurement measures what it says."""

import socket
import threading
import time

import numpy as np
import pytest
from torch import nn

from sfumato.bench.serving import Load, compared, export_random, in_process, load, rest_caller, take_load_in_turns


def test_rates_and_quantiles_of_a_known_load():
    seen = load(lambda: lambda: time.sleep(0.02), 4, 0.4)
    assert seen.quantile(0.0) >= 0.02
    assert 0 < seen.rate <= 200  # 4 clients, at most 50 a second each
    assert Load(2.0, [0.1, 0.2, 0.3, 0.4]).rate == 2.0
    assert Load(2.0, [0.1, 0.2, 0.3]).quantile(0.5) == 0.2


@pytest.mark.parametrize("succeeding", [0, 1, 5])
def test_a_call_that_fails_ends_the_measurement(succeeding):
    """The client's first call, the first that is timed, and a later one; nobody waits for the failed client."""
    left = [succeeding]

    def failing():
        if left[0] == 0:
            raise ConnectionError("nobody listens")
        left[0] -= 1

    calls = iter([failing, *[lambda: time.sleep(0.001)] * 2])
    with pytest.raises(RuntimeError, match=r"a client's call failed: ConnectionError\('nobody listens'\)"):
        take_load_in_turns({"ours": (lambda: next(calls), 3)}, 1, 0.05)


def test_ratios_of_known_loads():
    loads = {"ours": [Load(1.0, [0.1] * 10), Load(1.0, [0.2] * 5)], "base": [Load(1.0, [0.05] * 20)] * 2}
    rate, wait = compared(loads, "ours", "base", "asked", "nothing", 0.3)
    assert (rate.ratio, rate.met, wait.target) == (0.375, True, None)  # the median of 10 / 20 and 5 / 20
    assert wait.ratio == pytest.approx(3.0)  # of 0.1 / 0.05 and 0.2 / 0.05


def test_the_rest_client_asks_what_it_should_and_reads_whole_answers():
    asked = []
    answer = b'{"outputs": []}' + bytes(200_000)

    def answered(listener):
        connection, _ = listener.accept()
        with connection:
            for status, lost in ((b"200 OK", 0), (b"404 Not Found", 0), (b"200 OK", 1)):
                data = b""
                while b"\r\n\r\n" not in data or len(data) < expected(data):
                    data += connection.recv(4096)
                asked.append(data)
                head = b"HTTP/1.1 " + status + b"\r\nContent-Length: " + str(len(answer)).encode() + b"\r\n\r\n"
                connection.sendall(head + answer[:100])
                connection.sendall(answer[100 : len(answer) - lost])

    def expected(data):
        head, _, _ = data.partition(b"\r\n\r\n")
        (length,) = (line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        return len(head) + 4 + int(length)

    feature = np.arange(4, dtype=np.uint8)[None]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answered, args=(listener,), daemon=True)
        thread.start()
        call = rest_caller(f"127.0.0.1:{listener.getsockname()[1]}", "tiny", feature)()
        call()
        for message in ("404 Not Found", "200 OK"):  # an answer that breaks off is none
            with pytest.raises(RuntimeError, match=message):
                call()
        thread.join(20)
    assert asked[0] == asked[1]
    assert asked[0].startswith(b"POST /v2/models/tiny/infer HTTP/1.1\r\n")
    assert asked[0].endswith(feature.tobytes())


def test_the_decoder_in_process_is_the_bundle_s(tmp_path):
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid())
    cloud = nn.Linear(4, 10)
    bundle = export_random(tmp_path / "tiny", edge, cloud, (1, 8, 8))
    (logits,) = in_process(bundle, threads=1)()()
    feature = np.random.default_rng(0).integers(0, 256, (1, 4), dtype=np.uint8).astype(np.float32)
    feature = -0.1 + 1.2 * feature / 255  # [0, 1] and four standard deviations of 0.025 on either side
    by_hand = feature @ cloud.weight.detach().numpy().T + cloud.bias.detach().numpy()
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)
