"""Small bundles made with onnx itself, so that the client is tested without the exporter, and a server to misbehave."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sfumato.deploy.manifest import (
    FeatureSpec,
    InputSpec,
    Manifest,
    NoiseSpec,
    OutputSpec,
    QuantizationSpec,
)
from sfumato.files import sha256_of

IMAGE = (3, 6, 5)
FEATURE = (4, 3)
CLASSES = 4
STD = 0.1
KEY = bytes(range(100, 132))
FILES = ("encoder.onnx", "decoder.onnx")
ID = "@" * 32  # in an answer: the id of the query


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    bits = changes.pop("bits", 8)
    datatype = "FP32" if bits is None else "UINT8" if bits <= 8 else "UINT16"
    settings: dict[str, Any] = {
        "name": "small",
        "version": "1",
        "classes": tuple(f"class {index}" for index in range(CLASSES)),
        "input": InputSpec("image", IMAGE),
        "feature": FeatureSpec("feature", FEATURE, datatype, (0.0, 1.0)),
        "clip_norm": None,
        "noise": NoiseSpec(STD),
        "quantization": None if bits is None else QuantizationSpec(bits, -0.4, 1.4),
        "output": OutputSpec("logits", (CLASSES,)),
        "files": {name: sha256_of(folder / name) for name in FILES},
        "sizes": {name: (folder / name).stat().st_size for name in FILES},
    }
    return Manifest(**(settings | changes))


def make_bundle(
    folder: Path, *, gain: float = 1.0, extra: list[Any] | None = None, seed: int = 0, **changes: Any
) -> Path:
    """gain sigmoid(W image); logits = V value(feature). `extra` nodes are added to the encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels, size = int(np.prod(IMAGE)), int(np.prod(FEATURE))
    masked = bool(changes.get("noise") and changes["noise"].uniforms)
    encoder = [
        helper.make_node("Reshape", ["image", "pixels"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["scores"]),
        helper.make_node("Sigmoid", ["scores"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["z_hat"]),
        helper.make_node("Mul", ["z_hat", "gain"], ["part" if masked else "feature"]),
    ]
    if masked:
        encoder += [
            helper.make_node("GreaterOrEqual", ["uniform0", "rate"], ["kept"]),
            helper.make_node("Cast", ["kept"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["part", "mask"], ["feature"]),
        ]
    floats, levels = TensorProto.FLOAT, {8: TensorProto.UINT8, 16: TensorProto.UINT16}
    bits = changes.get("bits", 8)
    wire = floats if bits is None else levels[8 if bits <= 8 else 16]
    inputs = {"image": IMAGE} | ({"uniform0": FEATURE} if masked else {})
    _save(
        folder / "encoder.onnx",
        encoder + (extra or []),
        {name: (floats, shape) for name, shape in inputs.items()},
        ("feature", FEATURE),
        {
            "pixels": np.array([-1, pixels], np.int64),
            "shape": np.array([-1, *FEATURE], np.int64),
            "w": rng.normal(size=(pixels, size)).astype(np.float32) / 3,
            "gain": np.array(gain, np.float32),
            "rate": np.array(0.5, np.float32),
        },
    )
    low, high = -0.4, 1.4
    width = 1.0 if bits is None else (high - low) / (2**bits - 1)
    decoder = [
        helper.make_node("Cast", ["feature"], ["float"], to=floats),
        helper.make_node("Mul", ["float", "width"], ["steps"]),
        helper.make_node("Add", ["steps", "low"], ["value"]),
        helper.make_node("Reshape", ["value", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "v"], ["logits"]),
    ]
    _save(
        folder / "decoder.onnx",
        decoder,
        {"feature": (wire, FEATURE)},
        ("logits", (CLASSES,)),
        {
            "width": np.array(width, np.float32),
            "low": np.array(0.0 if bits is None else low, np.float32),
            "flat": np.array([-1, size], np.int64),
            "v": rng.normal(size=(size, CLASSES)).astype(np.float32),
        },
    )
    manifest_of(folder, **changes).save(folder)
    return folder


def pixels_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*IMAGE[1:], IMAGE[0]), dtype=np.uint8)


def _save(path: Path, nodes: list[Any], inputs: Any, output: Any, constants: dict[str, np.ndarray]) -> None:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["batch", *output[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


class Recorder:
    """What reached a server, and what it is to answer: a function of (number of the request, path, headers, body)."""

    def __init__(self, answer: Callable[[int, str, Any, bytes], tuple[int, dict[str, str], bytes] | None]) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.url = ""


@contextmanager
def recording(answer: Any, tls: ssl.SSLContext | None = None) -> Iterator[Recorder]:
    """A server on a free port; an answer of None closes the connection without a word."""
    recorder = Recorder(answer)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a refused handshake is what a test is about

        def get_request(self) -> Any:
            connection, address = super().get_request()
            return (tls.wrap_socket(connection, server_side=True) if tls else connection), address

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            recorder.bodies.append(body)
            recorder.headers.append(self.headers)
            recorder.paths.append(self.path)
            found = recorder.answer(len(recorder.bodies), self.path, self.headers, body)
            if found is None:
                self.close_connection = True
                return
            status, headers, data = found
            head = json.loads(body[: int(self.headers["Inference-Header-Content-Length"])])
            data = data.replace(ID.encode(), head["id"].encode())
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    where = "https://localhost" if tls else "http://127.0.0.1"
    recorder.url = f"{where}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def logits_answer(logits: Any) -> tuple[int, dict[str, str], bytes]:
    """A JSON response, as the protocol describes it."""
    rows = np.asarray(logits, np.float32)
    output = {"name": "logits", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return 200, {"Content-Type": "application/json"}, json.dumps({"id": ID, "outputs": [output]}).encode()
