"""Clients that cost as little as possible, so that a load test measures the server."""

import json
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

__all__ = ["rest_caller", "rest_request", "wait_until_ready"]


def wait_until_ready(process: "subprocess.Popen[str]") -> str:
    """The address from a server's log.

    Raises:
        RuntimeError: it ended instead.
    """
    if process.stderr is None:
        raise RuntimeError("the server's log is not read")
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("{") and (event := json.loads(line))["event"] == "listening":
            return str(event["rest"])
    raise RuntimeError(f"the server ended: {''.join(told)}")


def rest_request(model: str, feature: NDArray[Any]) -> bytes:
    """A whole HTTP request with a binary tensor and a binary answer."""
    size = {"binary_data_size": feature.nbytes}
    tensor = {"name": "feature", "datatype": "FP32", "shape": feature.shape, "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + feature.tobytes()
    return (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + body


def rest_caller(address: str, model: str, feature: NDArray[Any]) -> Callable[[], Callable[[], None]]:
    """A factory of calls over one connection each."""
    request = rest_request(model, feature)
    host, _, port = address.rpartition(":")

    def make() -> Callable[[], None]:
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> None:
            connection.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data:
                data += _received(connection)
            head, _, body = data.partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            while len(body) < length:
                body += _received(connection)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{lines[0].decode()}: {body[:200]!r}")

        return call

    return make


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data
