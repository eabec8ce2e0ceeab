"""Requests per second and waiting times of `sfumato serve` on this machine, over ONNX Runtime called in process."""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sfumato import Channel, SplitModel, models
from sfumato.bench.edge import edge_rows
from sfumato.bench.timing import Ratio, as_result
from sfumato.cores import usable_cores
from sfumato.deploy.export import ExportConfig, export_bundle

__all__ = [
    "Load",
    "compared",
    "export_random",
    "in_process",
    "load",
    "rest_caller",
    "run_serving_bench",
    "serving",
    "take_load_in_turns",
]


@dataclass(frozen=True)
class Load:
    """What some clients saw, each asking again as soon as it was answered: seconds in all, and of each answer."""

    seconds: float
    waits: list[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.waits) / self.seconds

    def quantile(self, share: float) -> float:
        """The wait that this share of the answers did not exceed."""
        return float(np.quantile(self.waits, share))


Caller = Callable[[], Callable[[], object]]
Loads = dict[str, list[Load]]

_CLASSES = [str(index) for index in range(10)]
_WIDE = 512  # values of the wide decoder's feature
_PATIENT = ("--deadline-ms", "30000")  # 32 clients that never pause may wait long where the machine is slow


def run_serving_bench(
    *, rounds: int = 9, seconds: float = 2.0, quick: bool = False, tell: Callable[[Ratio], None] | None = None
) -> dict[str, Any]:
    """The device's side, and the server under load on loopback.

    Args:
        rounds: how often each variant runs; they take turns.
        seconds: of one run.
        quick: so short that it shows no more than that everything works.
        tell: hears of each row.
    """
    before = os.getloadavg()[0]

    def measured() -> Iterator[Ratio]:
        with tempfile.TemporaryDirectory() as name:
            device = _vgg11(Path(name) / "device")
            yield from edge_rows(device, blocks=2, calls=5) if quick else edge_rows(device)
            yield from _server_rows(Path(name), 2 if quick else rounds, 0.1 if quick else seconds, quick)

    result = as_result(measured(), tell, rounds=rounds, quick=quick)
    return result | {"load": [round(before, 1), round(os.getloadavg()[0], 1)], "cores": usable_cores()}


def export_random(folder: Path, edge: nn.Module, cloud: nn.Module, image: tuple[int, ...]) -> Path:
    """A bundle called like its folder, with random weights, since speed does not depend on them."""
    model = SplitModel(edge, Channel(noise_std=0.025), cloud).eval()
    export_bundle(model, folder, ExportConfig(folder.name), classes=_CLASSES, image_shape=image)
    return folder


def _vgg11(folder: Path) -> Path:
    """The paper's network for CIFAR-10, cut at the second convolution: a feature of 8x8x8 = 512 values."""
    edge, cloud = models.build("vgg11", num_classes=10, image_shape=(3, 32, 32), cut=2, bottleneck=8)
    return export_random(folder, edge, cloud, (3, 32, 32))


def _wide(folder: Path, width: int) -> Path:
    """512 values, two hidden layers of 4,096, 10 classes: 76 MB of weights, of which one row uses each only once."""
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, _WIDE), nn.Sigmoid())
    cloud = nn.Sequential(nn.Linear(_WIDE, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return export_random(folder, edge, cloud, (1, 8, 8))


def _server_rows(folder: Path, rounds: int, seconds: float, quick: bool) -> list[Ratio]:
    vgg11, wide = _vgg11(folder / "vgg11"), _wide(folder / "wide", 64 if quick else 4096)
    feature, broad = levels((1, 8, 8, 8)), levels((1, _WIDE))
    with ExitStack() as stack:
        batched = stack.enter_context(serving([vgg11, wide], *_PATIENT))
        alone = stack.enter_context(serving([vgg11, wide], "--max-batch", "1", *_PATIENT))
        loads = take_load_in_turns(
            {
                "in process": (in_process(vgg11), 8),
                "in process, one thread a call": (in_process(vgg11, threads=1), 8),
                "rest": (rest_caller(batched, "vgg11", feature), 8),
                "vgg11, 32": (rest_caller(batched, "vgg11", feature), 32),
                "vgg11, 32, alone": (rest_caller(alone, "vgg11", feature), 32),
                "wide, 32": (rest_caller(batched, "wide", broad), 32),
                "wide, 32, alone": (rest_caller(alone, "wide", broad), 32),
            },
            rounds,
            seconds,
        )
    # Whoever calls ONNX Runtime from 8 threads would take the faster of its two settings.
    pairs = zip(loads["in process"], loads.pop("in process, one thread a call"), strict=True)
    loads["in process"] = [max(pair, key=lambda run: run.rate) for pair in pairs]
    called = "ONNX Runtime in process, 8 threads, the faster of 1 and all threads for a call"
    single = "the same server with --max-batch 1"
    return [
        *compared(loads, "rest", "in process", "VGG11's decoder over REST, 8 clients", called, 0.9),
        *compared(loads, "vgg11, 32", "vgg11, 32, alone", "batching, VGG11's decoder, 32 clients", single, 1.0),
        *compared(loads, "wide, 32", "wide, 32, alone", "batching, three linear layers, 32 clients", single, 1.0),
    ]


@contextmanager
def serving(bundles: list[Path], *options: str) -> Iterator[str]:
    """`sfumato serve` as a process of its own on a free port, with its default settings but for options; its address.

    Raises:
        RuntimeError: it ended instead.
    """
    words = [sys.executable, "-m", "sfumato.cli.main", "serve", *map(str, bundles), "--port", "0"]
    process = subprocess.Popen([*words, "--no-log-requests", *options], stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            if line.startswith("{") and (event := json.loads(line))["event"] == "listening":
                yield str(event["rest"])
                return
        raise RuntimeError(f"the server ended: {''.join(lines)}")
    finally:
        process.terminate()
        process.wait(60)


def levels(shape: Sequence[int]) -> NDArray[np.uint8]:
    """What a device sends, 8 bits a value."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def rest_caller(address: str, model: str, feature: NDArray[Any]) -> Caller:
    """A factory of calls over one connection each, which cost as little as possible, so that the server is measured."""
    size = {"binary_data_size": feature.nbytes}
    tensor = {"name": "feature", "datatype": "UINT8", "shape": feature.shape, "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + feature.tobytes()
    request = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + body
    host, _, port = address.rpartition(":")

    def make() -> Callable[[], None]:
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")

        def call() -> None:
            connection.sendall(request)
            status, length = answers.readline(), 0
            while (line := answers.readline().strip().lower()) and status:
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = answers.read(length)
            if len(body) < length or not status.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{status.decode().strip() or 'the server closed the connection'}: {body[:200]!r}")

        return call

    return make


def in_process(bundle: Path, *, threads: int = 0) -> Caller:
    """What a program does that calls ONNX Runtime itself: one session, one row at a time.

    Args:
        bundle: with the decoder.
        threads: of one call; 0 is ONNX Runtime's default, all cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(bundle / "decoder.onnx"), options, providers=["CPUExecutionProvider"])
    shape = [1, *session.get_inputs()[0].shape[1:]]
    feature = levels(shape)
    return lambda: lambda: session.run(["logits"], {"feature": feature})


def take_load_in_turns(runs: Mapping[str, tuple[Caller, int]], rounds: int, seconds: float) -> Loads:
    """Every variant under load, once per round, in alternating order."""
    loads: Loads = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 else -1]:
            loads[name].append(load(*runs[name], seconds))
    return loads


def load(make_call: Callable[[], Callable[[], object]], clients: int, seconds: float) -> Load:
    """Let `clients` threads call as often as they can, each what `make_call` gives it, at first once without timing.

    A call that fails is a RuntimeError: what fails is no load.
    """
    together = threading.Barrier(clients)

    def ask(_: int) -> tuple[float, list[float]]:
        waits: list[float] = []
        try:
            call = make_call()
            call()
            together.wait()
            start = time.perf_counter()
            while (began := time.perf_counter()) < start + seconds:
                call()
                waits.append(time.perf_counter() - began)
        except Exception as error:
            together.abort()
            raise RuntimeError(f"a client's call failed: {error!r}") from error
        return time.perf_counter() - start, waits

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, client) for client in range(clients)]
    errors = [error for client in asked if (error := client.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error.__cause__, threading.BrokenBarrierError)):
        raise error  # what broke the barrier, not that it was broken
    found = [client.result() for client in asked]
    return Load(max(taken for taken, _ in found), [wait for _, waits in found for wait in waits])


def compared(loads: Loads, ours: str, base: str, name: str, baseline: str, target: float | None = None) -> list[Ratio]:
    """The ratio of the rates, and that of the waits which one answer in a hundred exceeds."""
    pairs = list(zip(loads[ours], loads[base], strict=True))
    rates = [statistics.median(run.rate for run in loads[key]) for key in (ours, base)]
    wanted = ((ours, 0.5), (ours, 0.99), (base, 0.99))
    half, late, other = (1e3 * statistics.median(run.quantile(share) for run in loads[key]) for key, share in wanted)
    rate = statistics.median(a.rate / b.rate for a, b in pairs)
    wait = statistics.median(a.quantile(0.99) / b.quantile(0.99) for a, b in pairs)
    detail = f"{rates[0]:.0f} against {rates[1]:.0f} requests/s, {len(pairs)} rounds"
    waits = f"p50 {half:.1f} ms, p99 {late:.1f} ms against p99 {other:.1f} ms"
    return [
        Ratio(name, rate, baseline, target, "at least", detail),
        Ratio(f"p99: {name}", wait, baseline, detail=waits),
    ]
