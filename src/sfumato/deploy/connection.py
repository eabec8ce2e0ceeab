"""Asking a server over HTTP, by the standard library alone: one deadline for a query, and nothing shared with a fork."""

import collections
import http.client
import io
import ipaddress
import json
import os
import queue
import random
import socket
import ssl
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.messages import Query, Tensors, http_answer, http_query
from sfumato.errors import ConfigError, RemoteError, SfumatoWarning

__all__ = ["Remote", "Security"]

_LARGEST_ANSWER = 64 << 20
_PART = 1 << 16
_BUSY = (429, 502, 503, 504)  # what a retry can cure
_FIRST_PAUSE = 0.1
_LONGEST_REASON = 300
_JITTER = random.SystemRandom()  # children of a fork must not pause alike

# Of OpenSSL's X509_verify_cert_error_string.
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST, _UNKNOWN_AUTHORITY = (9,), (10,), (62, 64), (2, 18, 19, 20, 21)


@dataclass(frozen=True)
class Security:
    """What the client shows and what it expects to see.

    Attributes:
        token: bearer token, or None.
        ca: PEM file of the authorities that may have signed the server's certificate; None takes the system's.
        cert: PEM files (certificate chain, private key) of the client's own certificate, or None.
    """

    token: str | None = None
    ca: Path | str | None = None
    cert: tuple[Path | str, Path | str] | None = None


class _Unavailable(Exception):
    """The server could not be asked now; sending the same bytes again may help.

    Args:
        reason: for the user.
        pause: seconds after which the server wants to be asked again.
    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Remote:
    """One server. Each thread has a connection of its own while it asks, kept open afterwards for whoever asks next.

    Args:
        url: of the server.
        security: token and certificates.
        timeout: seconds for one query: connecting, sending, waiting, retries and pauses together.
        retries: how often the same bytes are sent again when the server is busy or cannot be reached.

    Raises:
        ConfigError: the address, the token, a certificate or a number makes no sense.
    """

    def __init__(self, url: str, security: Security, *, timeout: float, retries: int) -> None:
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
        self._host, self._prefix = parts.hostname, parts.path.rstrip("/")
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = _tls_context(security) if parts.scheme == "https" else None
        if self._tls is None and (security.ca is not None or security.cert is not None):
            raise ConfigError(f"certificates are given, but {url} is not encrypted; write https://")
        self._headers = _authorization(security.token, self._host if self._tls is None else None)
        self._process = os.getpid()
        self._idle: collections.deque[_Connection] = collections.deque()

    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors:
        """The decoder's tensors for a released feature (n, ...).

        Raises:
            RemoteError: the server cannot be reached in time, refuses, or answers something else than the protocol says.
        """
        query, deadline = http_query(manifest, feature), time.monotonic() + self._timeout
        pause = _FIRST_PAUSE
        for attempt in range(self._retries + 1):
            try:
                status, headers, body = self._post(query, deadline)
                break
            except _Unavailable as error:
                wait = max(pause * _JITTER.uniform(0.5, 1.5), error.pause)
                if attempt == self._retries or time.monotonic() + wait >= deadline:
                    raise RemoteError(
                        f"{self.url} cannot be asked now: {error}; is it running, and reachable?"
                    ) from error
                time.sleep(wait)
                pause *= 2
        if status != 200:
            raise self._refused(status, _reason(body), manifest)
        return http_answer(headers, body, query)

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().shut()

    def _connection(self, deadline: float) -> "tuple[_Connection, bool]":
        """An idle connection of this process, or a new one; and whether it was used before."""
        if self._process != os.getpid():
            # A forked child leaves its parent's connections alone: two that wrote into one would get each other's answers.
            self._idle, self._process = collections.deque(), os.getpid()
        try:
            return self._idle.pop().until(deadline), True
        except IndexError:
            return _Connection.open(self._host, self._port, self._tls, deadline), False

    def _post(self, query: Query, deadline: float) -> tuple[int, dict[str, str], bytes]:
        """Send once; a connection on which anything went wrong is not used again.

        Raises:
            _Unavailable: it makes sense to send it again.
            RemoteError: it does not.
        """
        reused, connection = False, None
        try:
            connection, reused = self._connection(deadline)
            status, headers, body, keep = connection.exchange(self._prefix + query.path, query, self._headers)
        except (http.client.HTTPException, OSError) as error:
            if connection is not None:
                connection.shut()
            if reused and isinstance(error, ConnectionError | ssl.SSLEOFError):
                # A server may close an idle connection at any time, so this says nothing about the query.
                self.close()
                return self._post(query, deadline)
            raise self._failure(error) from error
        if keep:
            self._idle.append(connection)
        else:
            connection.shut()
        if status in _BUSY:
            after = headers.get("retry-after", "")
            raise _Unavailable(f"it answers {status} ({_reason(body)})", float(after) if after.isdecimal() else 0.0)
        return status, headers, body

    def _refused(self, status: int, reason: str, manifest: Manifest) -> RemoteError:
        if status in (401, 403):
            return RemoteError(f"{self.url} refuses the token ({status}); give the right one with --token-file")
        if status == 404:
            return RemoteError(
                f"{self.url} does not serve the model {manifest.name!r} in version {manifest.version} ({reason}); "
                "serve this bundle there, or ask another server"
            )
        return RemoteError(f"{self.url} refuses the query ({status}: {reason})")

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteError(f"the certificate of {self.url} {_certificate_advice(error, self._host)}")
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return RemoteError(
                f"no encrypted connection to {self.url} ({_sentence(error.reason or error)}); does it speak TLS, and "
                "want a client certificate (--cert)?"
            )
        if isinstance(error, _AnswerTooLarge):
            return RemoteError(
                f"the answer of {self.url} is larger than {_LARGEST_ANSWER >> 20} MiB; is it the right server?"
            )
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            return RemoteError(f"the host {self._host} is not known ({_sentence(error.strerror)}); check the address")
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


class _AnswerTooLarge(http.client.HTTPException):
    pass


class _Connection:
    """A connected socket whose every operation ends at the deadline of the query that uses it.

    `socket.settimeout` alone bounds one operation: a server that sends a byte now and then would keep a client for ever.
    """

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self._socket, self._host, self._port, self._deadline = sock, host, port, 0.0

    @classmethod
    def open(cls, host: str, port: int, tls: ssl.SSLContext | None, deadline: float) -> Self:
        """Connect to the first of the host's addresses that answers.

        Raises:
            OSError: none did, in time.
        """
        failure: OSError = TimeoutError()
        for family, kind, protocol, _, address in _resolve(host, port, deadline):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(deadline))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    sock.settimeout(_left(deadline))
                    sock = tls.wrap_socket(sock, server_hostname=host)
                return cls(sock, host, port).until(deadline)
            except OSError as error:
                sock.close()
                if isinstance(error, ssl.SSLError):
                    raise
                failure = error
        raise failure

    def until(self, deadline: float) -> Self:
        """Set the deadline of the next exchange."""
        self._deadline = deadline
        return self

    def exchange(
        self, path: str, query: Query, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes, bool]:
        """One POST: status, headers in small letters, body, and whether the connection can be used again."""
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = self  # type: ignore[assignment]  # what http.client asks of a socket is below
        connection.request("POST", path, query.body, query.headers | headers)
        response = connection.getresponse()
        body = response.read(_LARGEST_ANSWER + 1)
        if len(body) > _LARGEST_ANSWER:
            raise _AnswerTooLarge
        found = {name.lower(): value for name, value in response.headers.items()}
        return response.status, found, body, not response.will_close

    def sendall(self, data: Any) -> None:
        """Send it all, in time."""
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(_left(self._deadline))
            rest = rest[self._socket.send(rest) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """What an answer is read from."""
        return io.BufferedReader(_Incoming(self), _PART)

    def receive(self, buffer: Any) -> int:
        """Read what has come, in time."""
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """What http.client does before it reads an answer that ends with the connection: nothing yet."""

    def shut(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Incoming(io.RawIOBase):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._connection.receive(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """`socket.getaddrinfo`, which takes no time limit and without a network may take half a minute."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        result = found.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, UnicodeError):
        raise socket.gaierror(socket.EAI_NONAME, "it is no name of a host") from result
    if isinstance(result, OSError):
        raise result
    return list(result)


def _authorization(token: str | None, open_host: str | None) -> dict[str, str]:
    """The header of a token; one that would travel in the open to another machine is warned of."""
    if token is None:
        return {}
    if not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ConfigError(
            "the token is empty or holds blanks or special characters; give the one that the server knows"
        )
    if open_host is not None and not _loopback(open_host):
        warnings.warn(
            f"the token travels unencrypted to {open_host}, where others can read it; ask over TLS",
            SfumatoWarning,
            stacklevel=5,
        )
    return {"Authorization": f"Bearer {token}"}


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_context(security: Security) -> ssl.SSLContext:
    """Verifies the server's certificate and its name; TLS 1.2 or newer."""
    try:
        context = ssl.create_default_context(cafile=None if security.ca is None else str(security.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if security.cert is not None:
            chain, key = security.cert
            context.load_cert_chain(str(chain), str(key), password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificates cannot be used ({_sentence(error)}); give PEM files") from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the private key has a passphrase")


def _certificate_advice(error: ssl.SSLCertVerificationError, host: str) -> str:
    clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if error.verify_code in _NOT_YET_VALID:
        return f"is not valid yet by this device's clock, which says {clock}; set the clock"
    if error.verify_code in _EXPIRED:
        return f"has expired (this device's clock says {clock}); the server needs a new one"
    if error.verify_code in _OTHER_HOST:
        return f"is of another host than {host}; ask by a name that the certificate holds"
    why = _sentence(error.verify_message)
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return f"was signed by an authority that is not known here ({why}); give the authority's certificate with --ca"
    return f"is not accepted ({why}); the server needs another one"


def _reason(body: bytes) -> str:
    try:
        return _sentence(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _sentence(body[:_LONGEST_REASON].decode("utf-8", "replace"))


def _sentence(text: object) -> str:
    """One line of what a server or a library said, without its full stop."""
    return " ".join(str(text).split())[:_LONGEST_REASON].rstrip(". ") or "no reason given"
