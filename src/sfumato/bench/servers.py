"""Servers under load: ours as users start it, kserve's where an environment has it, and none at all."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sfumato.bench.clients import wait_until_ready
from sfumato.errors import ConfigError

__all__ = ["in_process", "kserve", "server"]

_PATIENCE = 120.0


@contextmanager
def server(bundles: list[Path], *options: str) -> Iterator[str]:
    """The address of `sfumato serve` as a process of its own on a free port; defaults but for options."""
    words = [sys.executable, "-m", "sfumato.cli.main", "serve", *map(str, bundles), "--port", "0"]
    process = subprocess.Popen([*words, "--no-log-requests", *options], stderr=subprocess.PIPE, text=True)
    try:
        yield wait_until_ready(process)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def kserve(python: Path, decoder: Path) -> Iterator[str]:
    """kserve's server with a decoder, run by another environment's Python; gives the address of REST.

    Raises:
        ConfigError: it does not come up.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).with_name("kserve_server.py")
    process = subprocess.Popen(
        [str(python), str(script), str(decoder), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/models/tiny/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise ConfigError("kserve does not come up; --kserve needs a Python with the packages kserve and onnxruntime")


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
