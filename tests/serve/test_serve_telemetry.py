"""OpenTelemetry is off unless an endpoint is set, and then told of every request."""

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serve_support import features, infer, make_bundle, process

from sfumato.errors import ConfigError
from sfumato.serve.worker import traced


def test_it_is_off_without_an_endpoint(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    app = object()
    assert traced(app)[0] is app


def test_without_its_packages_a_sentence_says_so(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    with pytest.raises(ConfigError, match=r"install sfumato\[otel\]"):
        traced(object())


def test_spans_and_figures_arrive_the_last_ones_too(tmp_path):
    pytest.importorskip("opentelemetry.instrumentation.asgi")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    told = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["content-length"]))
            told[self.path] = told.get(self.path, b"") + content
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "my-decoder"}
        env |= {"OTEL_BSP_SCHEDULE_DELAY": "60000"}  # later than the test: what arrives was sent at the end
        with process(str(make_bundle(tmp_path / "tiny")), "--drain-seconds", "0", env=env) as one:
            assert infer(one.wait_for("listening", seconds=120)["rest"], features())[0] == 200
            assert one.end() == 0
        collector.shutdown()
    assert set(told) == {"/v1/traces", "/v1/metrics"}
    assert b"/v2/models/tiny/infer" in told["/v1/traces"]
    assert all(b"my-decoder" in content for content in told.values())
