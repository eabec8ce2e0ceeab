"""`sfumato serve` against kserve's own server: `python benchmarks/kserve.py PYTHON`, a Python that has kserve.

Both serve one linear layer over REST to 8 clients, so that what is measured is the protocol.
"""

import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from sfumato.bench.serving import compared, export_random, in_process, levels, rest_caller, serving, take_load_in_turns

_VALUES = 16
_PATIENCE_SECONDS = 120.0


@contextmanager
def kserve(python: Path, decoder: Path) -> Iterator[str]:
    """kserve's server with a decoder, run by another environment's Python; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).with_name("kserve_server.py")
    process = subprocess.Popen(
        [str(python), "-P", str(script), str(decoder), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
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
    raise SystemExit("kserve does not come up; give a Python with the packages kserve and onnxruntime")


def main(python: Path, rounds: int = 9, seconds: float = 2.0) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        edge = nn.Sequential(nn.Flatten(), nn.Linear(64, _VALUES), nn.Sigmoid())
        tiny = export_random(Path(name) / "tiny", edge, nn.Linear(_VALUES, 10), (1, 8, 8))
        feature = levels((1, _VALUES))
        with serving([tiny]) as ours, kserve(python, tiny / "decoder.onnx") as theirs:
            loads = take_load_in_turns(
                {
                    "ours": (rest_caller(ours, "tiny", feature), 8),
                    "theirs": (rest_caller(theirs, "tiny", feature), 8),
                    "in process": (in_process(tiny, threads=1), 8),
                },
                rounds,
                seconds,
            )
    for base, baseline in (("theirs", "kserve's own server"), ("in process", "ONNX Runtime in process, 8 threads")):
        for row in compared(loads, "ours", base, "one linear layer over REST, 8 clients", baseline):
            sys.stdout.write(f"{row.name}: {row.ratio:.3f} x {row.baseline} ({row.detail})\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
