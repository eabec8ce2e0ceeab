"""Requests per second and waiting times of `sfumato serve` on this machine, over ONNX Runtime called in process."""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.bench.clients import grpc_caller, rest_caller, wait_until_ready
from sfumato.bench.rows import Row

__all__ = ["Load", "load", "serving"]

_TINY = 16  # values of the tiny decoder's feature


@dataclass
class Load:
    """What some clients saw, each asking again as soon as it was answered.

    Attributes:
        seconds: how long they asked.
        waits: seconds of each answer.
        failures: of any kind.
    """

    seconds: float
    waits: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.waits) / self.seconds

    def quantile(self, share: float) -> float:
        """The wait that this share of the answers did not exceed."""
        return float(np.quantile(self.waits, share))


def load(make_call: Callable[[], Callable[[], None]], clients: int, seconds: float) -> Load:
    """Let `clients` threads call as often as they can.

    Args:
        make_call: called once in each thread; gives what is called again and again.
        clients: threads.
        seconds: after which nobody begins another call.
    """
    barrier = threading.Barrier(clients + 1)
    results: list[tuple[list[float], int]] = []

    def work() -> None:
        call = make_call()
        waits: list[float] = []
        failures = 0
        call()
        barrier.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            try:
                call()
            except Exception:
                failures += 1
            else:
                waits.append(time.perf_counter() - began)
        results.append((waits, failures))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    total = Load(time.perf_counter() - began)
    for waits, failures in results:
        total.waits += waits
        total.failures += failures
    return total


def serving(*, rounds: int = 5, seconds: float = 2.0) -> list[Row]:
    """The server with VGG11's decoder (CIFAR-10, cut at the second convolution, D = 512) on loopback.

    Baseline and server take turns; a row's ratio is the median over the rounds of the ratios within a round.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle = _vgg11(Path(folder) / "vgg11")
        tiny = _tiny(Path(folder) / "tiny")
        batched = stack.enter_context(server([bundle, tiny]))
        alone = stack.enter_context(server([bundle], "--max-batch", "1"))
        feature = np.random.default_rng(0).random((1, 8, 8, 8), dtype=np.float32)
        small = np.random.default_rng(0).random((1, _TINY), dtype=np.float32)
        runs = {
            "in process": (in_process(bundle), 8),
            "in process, one thread a call": (in_process(bundle, threads=1), 8),
            "in process, tiny": (in_process(tiny, threads=1), 8),
            "rest": (rest_caller(batched.rest, "vgg11", feature), 8),
            "grpc": (grpc_caller(batched.grpc, "vgg11", feature), 8),
            "rest, 32 clients": (rest_caller(batched.rest, "vgg11", feature), 32),
            "rest, 32 clients, not batched": (rest_caller(alone.rest, "vgg11", feature), 32),
            "rest, tiny": (rest_caller(batched.rest, "tiny", small), 8),
            "grpc, tiny": (grpc_caller(batched.grpc, "tiny", small), 8),
        }
        loads: dict[str, list[Load]] = {name: [] for name in runs}
        for index in range(rounds):
            for name in runs if index % 2 else reversed(runs):
                make, clients = runs[name]
                loads[name].append(load(make, clients, seconds))
    # Whoever calls ONNX Runtime from 8 threads would take the faster of its two settings.
    pair = zip(loads["in process"], loads.pop("in process, one thread a call"), strict=True)
    loads["in process"] = [max(both, key=lambda one: one.rate) for both in pair]
    failures = sum(one.failures for many in loads.values() for one in many)
    if failures:
        raise RuntimeError(f"{failures} requests failed under load")
    return [
        _rate(loads, "rest", "in process", "VGG11's decoder over REST, 8 clients", 0.85),
        _rate(loads, "grpc", "in process", "VGG11's decoder over gRPC, 8 clients", 0.85),
        _rate(
            loads,
            "rest, 32 clients",
            "rest, 32 clients, not batched",
            "batching, VGG11's decoder, REST, 32 clients",
            1.0,
        ),
        _wait(loads, "rest", "in process", "p99 of VGG11's decoder over REST, 8 clients"),
        _wait(loads, "grpc", "in process", "p99 of VGG11's decoder over gRPC, 8 clients"),
        _rate(loads, "rest, tiny", "in process, tiny", "tiny decoder over REST, 8 clients", None),
        _rate(loads, "grpc, tiny", "in process, tiny", "tiny decoder over gRPC, 8 clients", None),
    ]


def _rate(loads: dict[str, list[Load]], ours: str, base: str, name: str, target: float | None) -> Row:
    ratio = statistics.median(a.rate / b.rate for a, b in zip(loads[ours], loads[base], strict=True))
    rates = [statistics.median(one.rate for one in loads[key]) for key in (ours, base)]
    return Row(
        f"requests/s: {name}",
        ratio,
        _BASES.get(base, base),
        target,
        "at least",
        f"{rates[0]:.0f} against {rates[1]:.0f} requests/s, {len(loads[ours])} rounds",
    )


def _wait(loads: dict[str, list[Load]], ours: str, base: str, name: str) -> Row:
    pairs = zip(loads[ours], loads[base], strict=True)
    ratio = statistics.median(a.quantile(0.99) / b.quantile(0.99) for a, b in pairs)
    values = [1e3 * statistics.median(one.quantile(share) for one in loads[ours]) for share in (0.5, 0.99)]
    other = 1e3 * statistics.median(one.quantile(0.99) for one in loads[base])
    detail = f"p50 {values[0]:.1f} ms, p99 {values[1]:.1f} ms against p99 {other:.1f} ms"
    return Row(name, ratio, _BASES[base], detail=detail)


_BASES = {
    "in process": "ONNX Runtime in process, 8 threads, the faster of 1 and all threads for a call",
    "in process, tiny": "ONNX Runtime in process, 8 threads",
    "rest, 32 clients, not batched": "the same server with --max-batch 1",
}


@dataclass(frozen=True)
class Served:
    """A running server's addresses."""

    rest: str
    grpc: str


@contextmanager
def server(bundles: list[Path], *options: str) -> Iterator[Served]:
    """`sfumato serve` as a process of its own, on free ports, with its default settings."""
    words = [sys.executable, "-m", "sfumato.cli.main", "serve", *map(str, bundles), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen([*words, "--no-log-requests", *options], stderr=subprocess.PIPE, text=True)
    try:
        yield Served(*wait_until_ready(process))
    finally:
        process.terminate()
        process.wait(60)


def in_process(bundle: Path, *, threads: int = 0) -> Callable[[], Callable[[], None]]:
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
    feature = np.random.default_rng(0).random(shape, dtype=np.float32)

    def make() -> Callable[[], None]:
        return lambda: session.run(["logits"], {"feature": feature})

    return make


def _vgg11(folder: Path) -> Path:
    return _export(folder, "vgg11", {"cut": 2, "bottleneck": 8}, (3, 32, 32))


def _export(folder: Path, name: str, options: dict[str, Any], image: tuple[int, ...]) -> Path:
    from sfumato import Channel, SplitModel, models
    from sfumato.deploy.export import ExportConfig, export_bundle

    edge, cloud = models.build(name, num_classes=10, image_shape=image, **options)
    model = SplitModel(edge, Channel(noise_std=0.025), cloud).eval()
    export_bundle(model, folder, ExportConfig(name), classes=[str(c) for c in range(10)], image_shape=image)
    return folder


def _tiny(folder: Path) -> Path:
    import torch
    from torch import nn

    from sfumato import Channel, SplitModel
    from sfumato.deploy.export import ExportConfig, export_bundle

    torch.manual_seed(0)
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, _TINY), nn.Sigmoid())
    model = SplitModel(edge, Channel(noise_std=0.025), nn.Linear(_TINY, 10)).eval()
    export_bundle(model, folder, ExportConfig("tiny"), classes=[str(c) for c in range(10)], image_shape=(1, 8, 8))
    return folder


def main() -> None:
    """Measure and print."""
    for row in serving():
        target = "" if row.target is None else f" [{row.better} {row.target:g}: {'met' if row.met else 'MISSED'}]"
        sys.stdout.write(f"{row.name}: {row.ratio:.3f} x {row.baseline} ({row.detail}){target}\n")


if __name__ == "__main__":
    main()
