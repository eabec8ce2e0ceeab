"""Requests per second and waiting times of `sfumato serve` on this machine, over ONNX Runtime called in process."""

import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.bench import bundles
from sfumato.bench.clients import rest_caller
from sfumato.bench.edge import edge_rows
from sfumato.bench.load import Load, load
from sfumato.bench.rows import Row
from sfumato.bench.servers import in_process, kserve, server
from sfumato.evidence import evidence

__all__ = ["run_serving_bench"]

Runs = dict[str, tuple[Callable[[], Callable[[], None]], int]]
Loads = dict[str, list[Load]]


def run_serving_bench(
    *,
    rounds: int = 9,
    seconds: float = 2.0,
    quick: bool = False,
    kserve_python: Path | None = None,
    tell: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """The device's side, and the server under load on loopback.

    Args:
        rounds: how often each variant runs; they take turns.
        seconds: of one run.
        quick: so short that it shows no more than that everything works.
        kserve_python: a Python with kserve, to compare with.
        tell: hears of each row.
    """
    before = os.getloadavg()[0]
    rows: list[Row] = []

    def add(new: list[Row]) -> None:
        rows.extend(new)
        for row in new:
            if tell is not None:
                tell(row)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = bundles.vgg11(folder / "device", bits=8)
        add(edge_rows(device, blocks=2, calls=5) if quick else edge_rows(device))
        add(_server_rows(folder, 2 if quick else rounds, 0.1 if quick else seconds, quick, kserve_python))
    return {
        "rows": [row.as_dict() for row in rows],
        "rounds": rounds,
        "quick": quick,
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "cores": len(os.sched_getaffinity(0)),
        "evidence": evidence("cpu"),
    }


def _server_rows(folder: Path, rounds: int, seconds: float, quick: bool, kserve_python: Path | None) -> list[Row]:
    vgg11, wide = bundles.vgg11(folder / "vgg11"), bundles.wide(folder / "wide", 64 if quick else 4096)
    tiny = bundles.tiny(folder / "tiny")
    rng = np.random.default_rng(0)
    feature, broad, small = (
        rng.random((1, *shape), dtype=np.float32) for shape in ((8, 8, 8), (bundles.WIDE,), (bundles.TINY,))
    )
    with ExitStack() as stack:
        # 32 clients that never pause may wait longer than the default deadline where the machine is slow.
        patient = ("--deadline-ms", "30000")
        batched = stack.enter_context(server([vgg11, wide, tiny], *patient))
        alone = stack.enter_context(server([vgg11, wide], "--max-batch", "1", *patient))
        runs: Runs = {
            "in process": (in_process(vgg11), 8),
            "in process, one thread a call": (in_process(vgg11, threads=1), 8),
            "rest": (rest_caller(batched, "vgg11", feature), 8),
            "vgg11, 32": (rest_caller(batched, "vgg11", feature), 32),
            "vgg11, 32, alone": (rest_caller(alone, "vgg11", feature), 32),
            "wide, 32": (rest_caller(batched, "wide", broad), 32),
            "wide, 32, alone": (rest_caller(alone, "wide", broad), 32),
            "tiny": (rest_caller(batched, "tiny", small), 8),
            "tiny, in process": (in_process(tiny, threads=1), 8),
        }
        if kserve_python is not None:
            address = stack.enter_context(kserve(kserve_python, tiny / "decoder.onnx"))
            runs["tiny, kserve"] = (rest_caller(address, "tiny", small), 8)
        loads = _take_turns(runs, rounds, seconds)
    # Whoever calls ONNX Runtime from 8 threads would take the faster of its two settings.
    pair = zip(loads["in process"], loads.pop("in process, one thread a call"), strict=True)
    loads["in process"] = [max(both, key=lambda one: one.rate) for both in pair]
    return _rows(loads)


def _take_turns(runs: Runs, rounds: int, seconds: float) -> Loads:
    loads: Loads = {name: [] for name in runs}
    for index in range(rounds):
        for name in runs if index % 2 else reversed(runs):
            make, clients = runs[name]
            loads[name].append(load(make, clients, seconds))
    failures = {name: count for name, many in loads.items() if (count := sum(one.failures for one in many))}
    if failures:
        reason = next(one.reason for many in loads.values() for one in many if one.reason)
        raise RuntimeError(f"requests failed under load: {failures}, one of them with {reason}")
    return loads


def _rows(loads: Loads) -> list[Row]:
    called = "ONNX Runtime in process, 8 threads, the faster of 1 and all threads for a call"
    single = "the same server with --max-batch 1"
    rows = [
        _rate(loads, "rest", "in process", "VGG11's decoder over REST, 8 clients", called, 0.85),
        _wait(loads, "rest", "in process", "VGG11's decoder over REST, 8 clients", called),
        _rate(loads, "vgg11, 32", "vgg11, 32, alone", "batching, VGG11's decoder, 32 clients", single, 1.0),
        _wait(loads, "vgg11, 32", "vgg11, 32, alone", "batching, VGG11's decoder, 32 clients", single),
        _rate(loads, "wide, 32", "wide, 32, alone", "batching, three linear layers, 32 clients", single, 1.0),
        _wait(loads, "wide, 32", "wide, 32, alone", "batching, three linear layers, 32 clients", single),
    ]
    if "tiny, kserve" in loads:
        theirs = "kserve's own server, REST, 8 clients"
        rows.append(_rate(loads, "tiny", "tiny, kserve", "one linear layer over REST, 8 clients", theirs, 1.3))
        rows.append(_wait(loads, "tiny", "tiny, kserve", "one linear layer over REST, 8 clients", theirs))
    called = "ONNX Runtime in process, 8 threads"
    rows.append(_rate(loads, "tiny", "tiny, in process", "one linear layer over REST, 8 clients", called))
    return rows


def _rate(loads: Loads, ours: str, base: str, name: str, baseline: str, target: float | None = None) -> Row:
    ratio = statistics.median(a.rate / b.rate for a, b in zip(loads[ours], loads[base], strict=True))
    rates = [statistics.median(one.rate for one in loads[key]) for key in (ours, base)]
    detail = f"{rates[0]:.0f} against {rates[1]:.0f} requests/s, {len(loads[ours])} rounds"
    return Row(f"requests/s: {name}", ratio, baseline, target, "at least", detail)


def _wait(loads: Loads, ours: str, base: str, name: str, baseline: str) -> Row:
    pairs = zip(loads[ours], loads[base], strict=True)
    ratio = statistics.median(a.quantile(0.99) / b.quantile(0.99) for a, b in pairs)
    values = [1e3 * statistics.median(one.quantile(share) for one in loads[ours]) for share in (0.5, 0.99)]
    other = 1e3 * statistics.median(one.quantile(0.99) for one in loads[base])
    detail = f"p50 {values[0]:.1f} ms, p99 {values[1]:.1f} ms against p99 {other:.1f} ms"
    return Row(f"p99: {name}", ratio, baseline, detail=detail)
