"""The load measurement measures what it says."""

import time

import numpy as np
import pytest
from serve_support import by_onnxruntime, features, make_bundle, running

from sfumato.bench import clients
from sfumato.bench.load import Load, load
from sfumato.bench.servers import in_process


def test_rates_and_quantiles_of_a_known_load():
    seen = load(lambda: lambda: time.sleep(0.02), 4, 0.4)
    assert seen.failures == 0
    assert 0.02 <= seen.quantile(0.5) < 0.1
    assert 40 < seen.rate < 200  # 4 clients, 50 a second each on an idle machine
    assert Load(2.0, [0.1, 0.2, 0.3, 0.4]).rate == 2.0
    assert Load(2.0, [0.1, 0.2, 0.3]).quantile(0.5) == 0.2


def test_failures_are_counted_and_not_timed():
    calls = []

    def call():
        calls.append(0)
        if len(calls) > 1:
            raise ConnectionError

    seen = load(lambda: call, 1, 0.01)
    assert seen.failures == len(calls) - 1 > 0
    assert seen.waits == []


def test_a_client_that_cannot_begin_ends_the_measurement():
    def make():
        raise ConnectionError("nobody listens")

    with pytest.raises(RuntimeError, match="first call failed: nobody listens"):
        load(make, 3, 0.1)


def test_its_clients_ask_the_server_what_they_should(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    with running(bundle) as server:
        clients.rest_caller(server.rest, "tiny", features(2))()()
        with pytest.raises(RuntimeError, match="no model of this name"):
            clients.rest_caller(server.rest, "other", features())()()
    call = in_process(bundle)()
    assert len(call()[0]) == 1
    np.testing.assert_array_equal(call()[0], by_onnxruntime(bundle, features(seed=0)))
