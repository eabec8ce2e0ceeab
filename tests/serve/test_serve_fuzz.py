"""A short fuzz of REST from its own description (`serve_fuzz.py` is the long one), and one of bytes in process."""

import asyncio
import collections
import json
import random
import threading

import pytest
from serve_fuzz import rest
from serve_support import features, make_bundle, process, tensor

from sfumato.serve import ServeConfig, app
from sfumato.serve.app import App
from sfumato.serve.core import Core
from sfumato.serve.door import GUEST
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log


@pytest.mark.filterwarnings("ignore")
def test_whatever_the_description_allows_or_forbids_is_answered_or_refused(tmp_path):
    # A process of its own: hypothesis parses sources while it draws, which CPython 3.11 fails on beside other threads.
    with process(str(make_bundle(tmp_path / "tiny")), "--no-log-requests") as server:
        counts, inferred = rest(server.wait_for("listening")["rest"], 100)
    assert sum(counts.values()) > 70
    assert {200, 400, 404} <= set(counts)
    assert max(counts) <= 503  # and nothing but a deadline of the request's own, see serve_fuzz
    # The description tells what is accepted, not only what is not: 6 to 20 % are, as the draws fall.
    assert inferred[200] > 0


ODD = [None, True, -1, 1.5, 1e308, 2**64, 10**400, "", "\ud800", "\0", "[", [], {}, [[]], [None]]
BYTES = [b"NaN", b"1e999", b"01", b"\xff", b"[" * 3000, b'{"a":' * 2000, b"9" * 500, b'"', b"}", b"\xef\xbb\xbf"]
LENGTHS = [b"0", b"-1", b"+5", b"1_0", b"9" * 5000, b"\xb2", b"", b" 5", b"10"]
PARTS = [
    *["v2", "models", "tiny", "versions", "1", "infer", "ready", "health", "live", "metrics", ".."],
    "",
    "\0",
    "\ud800",
]


class Guest:
    """The application's side of a connection, without one."""

    since = None
    work = read = answer = rest = lambda *_: None


def spoilt(draw):
    """A request (method, path, headers, body) that would be answered, and what a random slip makes of it."""
    feature = features(draw.choice([1, 3]))
    method, path, headers, binary = "POST", "/v2/models/tiny/infer", [], draw.choice([b"", feature.tobytes()])
    given = tensor(feature, parameters={"binary_data_size": len(binary)}, data=...) if binary else tensor(feature)
    request = {
        "id": "1",
        "inputs": [given],
        "outputs": [{"name": "logits", "parameters": {"binary_data": bool(binary)}}],
    }
    kind = draw.choice(["value", "text", "text", "binary", "path"])
    if kind == "value":
        node = draw.choice([request, given, given["shape"], request["outputs"][0], given.get("data", request)])
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key] = draw.choice(ODD)
    head = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if kind == "text":
        at = draw.randrange(len(head))
        head = head[:at] + draw.choice([*BYTES, b""]) + head[at + draw.choice([0, 1, 20, 10**6]) :]
    length = b"%d" % len(head)
    if kind == "binary":
        binary, length = draw.choice([binary[:-1], b"\xff" * len(binary), binary]), draw.choice([length, *LENGTHS])
    if kind == "path":
        method = draw.choice(["GET", "HEAD", "POST", "PUT", ""])
        path = "/" + "/".join(draw.choices(PARTS, k=draw.randrange(6)))
    if binary or draw.random() < 0.1:
        headers.append((b"inference-header-content-length", length))
    return method, path, headers, head + binary


async def answered(app, method, path, headers, body):
    messages, sent = [{"type": "http.request", "body": body}], []

    async def receive():
        return messages.pop()

    async def send(message):
        sent.append(message)

    GUEST.set(Guest())
    await asyncio.wait_for(app({"type": "http", "method": method, "path": path, "headers": headers}, receive, send), 30)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize("headers", [[], [(b"inference-header-content-length", b"70000")]])
def test_a_long_text_is_read_beside_the_event_loop(tmp_path, monkeypatch, headers):
    config = ServeConfig((make_bundle(tmp_path / "tiny"),), port=0, threads=1, log_requests=False)
    readers, real = [], app.read_request

    def read_request(*given):
        readers.append(threading.current_thread().name)
        return real(*given)

    async def ask():
        core = Core(config, Generation.read(config), Log(requests=False), 64)
        status, _ = await answered(App(core), "POST", "/v2/models/tiny/infer", headers, b" " * 70_000)
        core.close()
        return status

    monkeypatch.setattr(app, "read_request", read_request)
    assert asyncio.run(ask()) == 400
    assert readers[0].startswith("parse")


def test_spoilt_bytes_are_answered_or_refused_in_a_sentence(tmp_path):
    config = ServeConfig((make_bundle(tmp_path / "tiny"),), port=0, threads=1, log_requests=False)
    counts = collections.Counter()

    async def all_of_them():
        core, draw = Core(config, Generation.read(config), Log(requests=False), 64), random.Random(0)
        app = App(core)
        for _ in range(500):
            request = spoilt(draw)
            status, content = await answered(app, *request)
            counts[status] += 1
            assert status < 500, (request, content)
            assert status < 400 or list(json.loads(content)) == ["error"], request
        core.close()

    asyncio.run(all_of_them())
    assert {200, 400, 404, 405} <= set(counts)
