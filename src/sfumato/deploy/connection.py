"""Asking a server in the Open Inference Protocol, JSON with binary tensors behind it, by the standard library alone.

A query is encoded once, has one deadline, and shares nothing with a fork.
"""

import collections
import contextlib
import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.release import dtype_of
from sfumato.errors import ConfigError, RemoteError, SfumatoWarning

__all__ = ["Query", "Remote", "Tensors", "http_query"]

HEADER = "Inference-Header-Content-Length"

Tensors = dict[str, npt.NDArray[Any]]

_DATATYPES = ("FP32", "INT64")

_LARGEST_ANSWER = 64 << 20
_BUSY = (408, 425, 429, 502, 503, 504)  # what a retry can cure
_FIRST_PAUSE = 0.1
_LONGEST_REASON = 300
_LOOPBACK = re.compile(r"localhost|::1|127(\.\d{1,3}){3}")
_JITTER = random.SystemRandom()  # children of a fork must not pause alike


@dataclass(frozen=True)
class Query:
    """One request, ready to be sent as often as it takes: never with new noise. The answer has to give `id` back."""

    path: str
    headers: dict[str, str]
    body: bytes
    id: str


class _Unavailable(Exception):
    """The server could not be asked now; sending the same bytes again, after `pause` seconds, may help."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Remote:
    """One server. Who asks has a connection to itself, kept open afterwards for whoever asks next.

    What the arguments mean is told by `EdgeClient`; a ConfigError says which of them makes no sense.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: Path | str | None = None,
        cert: tuple[Path | str, Path | str] | None = None,
        timeout: float,
        retries: int,
    ) -> None:
        if not 0 < timeout < threading.TIMEOUT_MAX or retries < 0:
            raise ConfigError(
                f"timeout is {timeout} and retries are {retries}; give seconds above 0, and 0 or more retries"
            )
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username is not None:
            raise ConfigError(f"{url} is no address of an HTTP server; give one such as http://127.0.0.1:8000")
        self.url, self._timeout, self._retries = url, timeout, retries
        self._host, self._port, self._prefix = parts.hostname, port, parts.path.rstrip("/")
        self._tls = _tls_context(ca, cert) if parts.scheme == "https" else None
        if self._tls is None and (ca is not None or cert is not None):
            raise ConfigError(f"certificates are given, but {url} is not encrypted; write https://")
        self._headers = _authorization(token, self._host if self._tls is None else None)
        self._process = os.getpid()
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()

    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors:
        """The decoder's tensors for a released feature (n, ...); a RemoteError says why there are none."""
        query, deadline = http_query(manifest, feature), time.monotonic() + self._timeout
        pause, left = _FIRST_PAUSE, self._retries
        while True:
            try:
                return _http_answer(*self._post(query, manifest, deadline), query)
            except _Unavailable as error:
                wait = max(pause * _JITTER.uniform(0.5, 1.5), error.pause)
                if not left or time.monotonic() + wait >= deadline:
                    raise RemoteError(
                        f"{self.url} cannot be asked now: {error}; is it running, and reachable?"
                    ) from error
                time.sleep(wait)
                pause, left = 2 * pause, left - 1

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    def _post(self, query: Query, manifest: Manifest, deadline: float) -> tuple[dict[str, str], bytes]:
        """Send once; `_Unavailable` where it makes sense to send it again, `RemoteError` where it does not."""
        connection = self._connection()
        reused = connection.sock is not None
        try:
            status, headers, body = _in_time(deadline, lambda: self._exchange(connection, query, deadline))
        except (http.client.HTTPException, OSError, UnicodeError) as error:
            _abandon(connection)
            if reused and isinstance(error, ConnectionError | ssl.SSLEOFError):
                # A server may close an idle connection at any time, so this says nothing about the query.
                self.close()
                return self._post(query, manifest, deadline)
            raise self._failure(error) from error
        if connection.sock is not None:
            self._idle.append(connection)
        if status == 200:
            return headers, body
        reason = _reason(body)
        if status in _BUSY:
            after = headers.get("retry-after", "")
            raise _Unavailable(f"it answers {status} ({reason})", float(after) if after.isdecimal() else 0.0)
        if status in (401, 403):
            raise RemoteError(f"{self.url} refuses the token ({status}); give the right one with --token-file")
        if status == 404:
            raise RemoteError(
                f"{self.url} does not serve the model {manifest.name!r} in version {manifest.version} ({reason}); "
                "serve this bundle there, or ask another server"
            )
        raise RemoteError(f"{self.url} refuses the query ({status}: {reason})")

    def _connection(self) -> http.client.HTTPConnection:
        """An idle connection of this process, or a new one."""
        if self._process != os.getpid():
            # A forked child leaves its parent's connections alone: two that write into one get each other's answers.
            self._idle, self._process = collections.deque(), os.getpid()
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)

    def _exchange(
        self, connection: http.client.HTTPConnection, query: Query, deadline: float
    ) -> tuple[int, dict[str, str], bytes]:
        if connection.sock is None:
            connection.connect()
        if time.monotonic() > deadline:  # nobody waits any more, so nothing is sent
            raise TimeoutError
        connection.request("POST", self._prefix + query.path, query.body, query.headers | self._headers)
        response = connection.getresponse()
        body = response.read(_LARGEST_ANSWER + 1)
        if len(body) > _LARGEST_ANSWER:
            connection.close()
            raise RemoteError(
                f"the answer of {self.url} is larger than {_LARGEST_ANSWER >> 20} MiB; is it the right server?"
            )
        if response.length:  # the connection has ended before the answer
            raise http.client.IncompleteRead(body, response.length)
        return response.status, {name.lower(): value for name, value in response.headers.items()}, body

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteError(f"the certificate of {self.url} {_certificate_advice(error, self._host)}")
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            why = _sentence(error.reason or error)
            if "CERTIFICATE" in why or "UNKNOWN_CA" in why:  # an alert about what this side has shown
                return RemoteError(
                    f"{self.url} does not accept this device's certificate, or misses one ({why}); give one that is "
                    "valid (--cert)"
                )
            return RemoteError(
                f"no encrypted connection to {self.url} ({why}); does it speak TLS (1.2 or newer), and want a client "
                "certificate (--cert)?"
            )
        if isinstance(error, UnicodeError) or (isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN):
            return RemoteError(f"the host {self._host} is not known ({_sentence(error)}); check the address")
        if isinstance(error, TimeoutError):
            return _Unavailable(f"no answer within {self._timeout:g} s")
        if isinstance(error, http.client.RemoteDisconnected | ssl.SSLEOFError):
            hint = "; if it speaks TLS, write https://" if self._tls is None else ""
            return _Unavailable(f"it closed the connection without an answer{hint}")
        if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.IncompleteRead):
            return RemoteError(
                f"{self.url} does not answer in HTTP ({type(error).__name__}); is it the right port, and does it speak "
                "TLS (https://)?"
            )
        return _Unavailable(_sentence(getattr(error, "strerror", None) or error or type(error).__name__))


def _in_time(deadline: float, work: Callable[[], Any]) -> Any:
    """Do something in a thread of its own, and wait for it until the deadline; then a TimeoutError.

    A socket's timeout bounds one operation and a name server's has none: a server that sends a byte now and then, or a
    device without a network, would keep the caller far beyond it.
    """
    found: Future[Any] = Future()

    def attempt() -> None:
        try:
            found.set_result(work())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=attempt, daemon=True).start()
    return found.result(max(0.0, deadline - time.monotonic()))


def _abandon(connection: http.client.HTTPConnection) -> None:
    """Close a connection, and wake whoever still waits for it."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def _authorization(token: str | None, open_host: str | None) -> dict[str, str]:
    """The header of a token; one that would travel in the open to another machine is warned of."""
    if token is None:
        return {}
    if not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ConfigError(
            "the token is empty or holds blanks or special characters; give the one that the server knows"
        )
    if open_host is not None and not _LOOPBACK.fullmatch(open_host):
        warnings.warn(
            f"the token travels unencrypted to {open_host}, where others can read it; ask over TLS",
            SfumatoWarning,
            stacklevel=5,
        )
    return {"Authorization": f"Bearer {token}"}


def _tls_context(ca: Path | str | None, cert: tuple[Path | str, Path | str] | None) -> ssl.SSLContext:
    """Verifies the server's certificate and its name; TLS 1.2 or newer."""
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            chain, key = cert
            context.load_cert_chain(str(chain), str(key), password="")  # with a passphrase it is refused
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificates cannot be used ({_sentence(error)}); give PEM files, and a key without a passphrase"
        ) from error
    return context


def _certificate_advice(error: ssl.SSLCertVerificationError, host: str) -> str:
    """What is wrong and what helps, by OpenSSL's number of the reason."""
    clock, why = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), _sentence(error.verify_message)
    advice = {
        9: f"is not valid yet by this device's clock, which says {clock}; set the clock",
        10: f"or its authority's has expired (this device's clock says {clock}); a new one is needed",
        62: f"is of another host than {host}; ask by a name that the certificate holds",
    }
    advice[64] = advice[62]  # the same for an address in the place of a name
    unknown = f"was signed by an authority that is not known here ({why}); give the authority's certificate with --ca"
    advice |= dict.fromkeys((2, 18, 19, 20, 21), unknown)
    return advice.get(error.verify_code, f"is not accepted ({why}); the server needs another one")


def _reason(body: bytes) -> str:
    try:
        return _sentence(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _sentence(body[:_LONGEST_REASON].decode("utf-8", "replace"))


def _sentence(text: object) -> str:
    """One line of what a server or a library said, without its full stop."""
    return " ".join(str(text).split())[:_LONGEST_REASON].rstrip(". ") or "no reason given"


def http_query(manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
    """A POST of the feature (n, ...) with its bytes behind the JSON."""
    raw = np.ascontiguousarray(feature, dtype_of(manifest.feature.datatype)).tobytes()
    name = os.urandom(16).hex()
    head = b'{"id":"%s",%s' % (
        name.encode(),
        _head(manifest.feature.name, feature.shape, manifest.feature.datatype, len(raw)),
    )
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
    return Query(f"/v2/models/{manifest.name}/versions/{manifest.version}/infer", headers, head + raw, name)


@lru_cache(maxsize=64)  # a device asks the same question about one image after the other
def _head(name: str, shape: tuple[int, ...], datatype: str, size: int) -> bytes:
    """The JSON without its first brace."""
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(asked, separators=(",", ":"))[1:].encode()


def _http_answer(headers: Mapping[str, str], body: bytes, query: Query) -> Tensors:
    """The tensors of a response, binary or JSON; a RemoteError refuses what is none, or answers another query."""
    try:
        length = int(headers.get(HEADER.lower(), len(body)))
        if not 0 <= length <= len(body):
            raise ValueError("its header is longer than the answer")
        head = json.loads(body[:length])
        outputs, told = head["outputs"], head.get("id")
        found: Tensors = {}
        at = length
        for output in outputs:
            if output["datatype"] not in _DATATYPES:
                raise ValueError(f"a tensor of {output['datatype']}")
            dtype = dtype_of(output["datatype"])
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.array(output["data"], dtype)
            else:
                values = np.frombuffer(body[at : at + int(size)], dtype)
                at += int(size)
            found[str(output["name"])] = values.reshape([int(side) for side in output["shape"]])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RemoteError(
            f"the server's answer is not one of the Open Inference Protocol ({str(error)[:200]}); is this the right "
            "address?"
        ) from error
    if told != query.id:
        raise RemoteError(
            "the server's answer carries the id of another query, or none, so it was not taken; is a proxy in between "
            "that keeps answers?"
        )
    return found
