"""Tiny bundles made with onnx itself, a server in a thread or in a process, and clients that are not ours."""

import asyncio
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
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
from sfumato.serve import ServeConfig
from sfumato.serve.door import Door, descriptors, listen, loop_with
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log
from sfumato.serve.worker import Worker

DIM, CLASSES = 8, 5
_TYPES = {"FP32": TensorProto.FLOAT, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16}


def make_bundle(
    folder: Path,
    name: str = "tiny",
    *,
    version: str = "1",
    seed: int = 0,
    shape: tuple[int, ...] = (DIM,),
    bits: int | None = None,
    reveal: str = "logits",
    top_k: int | None = None,
) -> Path:
    """A decoder of two layers with weights from a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    datatype = "FP32" if bits is None else "UINT8" if bits <= 8 else "UINT16"
    size = int(np.prod(shape))
    nodes = [
        helper.make_node("Cast", ["feature"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "first"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["bent"]),
        helper.make_node("MatMul", ["bent", "second"], ["logits"]),
    ]
    weights = {
        "flat": np.array([-1, size], np.int64),
        "first": rng.normal(size=(size, 16)).astype(np.float32),
        "second": rng.normal(size=(16, CLASSES)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("feature", _TYPES[datatype], ["N", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "decoder.onnx")
    (folder / "encoder.onnx").write_bytes(b"not needed by a server")
    Manifest(
        name=name,
        version=version,
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        input=InputSpec("image", (1, 8, 8)),
        feature=FeatureSpec("feature", shape, datatype),  # type: ignore[arg-type]
        clip_norm=None,
        noise=NoiseSpec(0.1),
        quantization=None if bits is None else QuantizationSpec(bits, 0.0, 1.0),
        output=OutputSpec("logits", (CLASSES,), reveal, top_k),  # type: ignore[arg-type]
        files={file: sha256_of(folder / file) for file in ("decoder.onnx", "encoder.onnx")},
        sizes={file: (folder / file).stat().st_size for file in ("decoder.onnx", "encoder.onnx")},
    ).save(folder)
    return folder


def features(rows: int = 1, *, seed: int = 1, shape: tuple[int, ...] = (DIM,)) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, *shape), dtype=np.float32)


def by_onnxruntime(bundle: Path, feature: np.ndarray) -> np.ndarray:
    """The oracle: ONNX Runtime called in process, with its default settings."""
    session = onnxruntime.InferenceSession(str(bundle / "decoder.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"feature": feature})[0]


class Running:
    """A worker on a thread of its own, with what a test needs to know."""

    def __init__(self, config: ServeConfig, log: Log | None = None) -> None:
        generation = Generation.read(config)
        self.door = Door(config, descriptors(config))
        self.loop = loop_with(self.door)()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        sock = listen(config.host, config.port)
        try:
            self.worker = self.do(self._made(config, generation, log or Log(requests=config.log_requests)))
            self.do(self.worker.start(sock))
        except BaseException:
            sock.close()
            self._end()
            raise
        host, port = sock.getsockname()[:2]
        self.rest = f"{host}:{port}"
        self.core = self.worker.core
        self._stopped = False

    async def _made(self, config: ServeConfig, generation: Generation, log: Log) -> Worker:
        return Worker(config, generation, self.door, log)

    def do(self, work: Coroutine[Any, Any, Any], timeout: float = 30) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self, **how: Any) -> None:
        self._stopped = True
        self.do(self.worker.stop(**how))

    def close(self) -> None:
        try:
            if not self._stopped:
                self.stop()
        finally:
            self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def running(*bundles: Path, log: Log | None = None, **settings: Any) -> Iterator[Running]:
    options = {"port": 0, "drain_seconds": 0.0, "log_requests": False, "threads": 2} | settings
    server = Running(ServeConfig(bundles, **options), log)
    try:
        yield server
    finally:
        server.close()


class Process:
    """`sfumato serve` as users start it."""

    def __init__(self, *words: str, **options: Any) -> None:
        command = [sys.executable, "-m", "sfumato.cli.main", "serve", *words, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        self.events: list[dict[str, Any]] = []
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.text += line
            if line.startswith("{"):
                self.events.append(json.loads(line))

    def wait_for(self, event: str, count: int = 1, seconds: float = 120) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [entry for entry in self.events if entry["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise AssertionError(f"no {count} x {event!r}; the process said: {self.text}")

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join(5)


@contextmanager
def process(*words: str, **options: Any) -> Iterator[Process]:
    one = Process(*words, **options)
    try:
        yield one
    finally:
        one.end()


def ask(
    address: str,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 60,
) -> tuple[int, dict[str, str], Any]:
    """One request by the standard library's client; JSON bodies and answers are (un)packed."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    found = {key.lower(): value for key, value in response.getheaders()}
    return response.status, found, json.loads(content) if "json" in found.get("content-type", "") else content


def raw(address: str, *parts: bytes, pause: float = 0.0, seconds: float = 60) -> bytes:
    """What comes back until the server closes the connection."""
    host, _, port = address.rpartition(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as one:
        for part in parts:
            one.sendall(part)
            time.sleep(pause)
        while data := one.recv(65536):
            said += data
    return said


def tensor(feature: np.ndarray, **changes: Any) -> dict[str, Any]:
    datatype = {"f": "FP32", "u": f"UINT{8 * feature.itemsize}"}[feature.dtype.kind]
    described = {"name": "feature", "datatype": datatype, "shape": list(feature.shape), "data": feature.tolist()}
    return {key: value for key, value in (described | changes).items() if value is not ...}


def infer(address: str, feature: np.ndarray, model: str = "tiny", **more: Any) -> tuple[int, dict[str, str], Any]:
    return ask(address, f"/v2/models/{model}/infer", {"inputs": [tensor(feature)], **more})


def logits_of(answer: Any) -> np.ndarray:
    (output,) = answer["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def metric(address: str, name: str, *labels: str, headers: dict[str, str] | None = None) -> float:
    """A figure of /metrics, summed over the label sets that hold all the given parts."""
    _, _, text = ask(address, "/metrics", headers=headers)
    lines = [line for line in text.decode().splitlines() if re.match(rf"{name}(\{{| )", line)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in labels))


def clients(count: int, work: Any) -> list[Any]:
    """Run `work(index)` on threads; an exception is its result."""
    results: list[Any] = [None] * count

    def one(index: int) -> None:
        try:
            results[index] = work(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as handle:
        return [int(word) for word in handle.read().split()]


def resident_bytes(pid: int | None = None) -> int:
    with open(f"/proc/{pid or os.getpid()}/statm") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def pieces(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]
