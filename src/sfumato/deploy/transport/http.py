"""HTTP with binary tensors, by the standard library alone."""

import http.client
import json
import ssl
import threading
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.messages import Query, Tensors, http_answer, http_query
from sfumato.deploy.transport.base import Remote, Security, Unavailable, sentence
from sfumato.errors import ConfigError, RemoteError

__all__ = ["HttpTransport", "tls_context"]

_LARGEST_ANSWER = 64 << 20
_BUSY = (429, 502, 503, 504)


class HttpTransport(Remote):
    """One connection, kept open; threads wait for one another."""

    name: ClassVar[str] = "http"

    def __init__(self, url: str, security: Security, *, timeout: float, retries: int) -> None:
        super().__init__(url, security, timeout=timeout, retries=retries)
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username is not None:
            raise ConfigError(f"{url} is no address of an HTTP server; give one such as http://127.0.0.1:8000")
        self.host, self.encrypted = parts.hostname, parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._lock = threading.Lock()
        if parts.scheme == "https":
            context = tls_context(security)
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout, context=context
            )
        elif security.ca is not None or security.cert is not None:
            raise ConfigError(f"certificates are given, but {url} is not encrypted; write https://")
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)

    def encode(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
        """JSON, then the tensor."""
        return http_query(manifest, feature)

    def send(self, manifest: Manifest, query: Query) -> Tensors:
        """One POST."""
        with self._lock:
            status, headers, body = self._post(query)
        if status == 200:
            return http_answer(headers, body)
        reason = _reason(body)
        if status in _BUSY:
            raise Unavailable(f"it answers {status} ({reason})", _retry_after(headers))
        if status in (401, 403):
            raise RemoteError(f"{self.url} refuses the token ({status}); give the right one with --token-file")
        if status == 404:
            raise RemoteError(
                f"{self.url} does not serve the model {manifest.name!r} in version {manifest.version} ({reason}); "
                "serve this bundle there, or ask another server"
            )
        raise RemoteError(f"{self.url} refuses the query ({status}: {reason})")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, query: Query) -> tuple[int, dict[str, str], bytes]:
        headers = dict(query.headers)
        if self.security.token is not None:
            headers["Authorization"] = f"Bearer {self.security.token}"
        reused = self._connection.sock is not None
        try:
            return self._exchange(query, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close an idle connection at any time, so this says nothing about the query.
            if not reused:
                raise Unavailable("it closed the connection without an answer") from None
            try:
                return self._exchange(query, headers)
            except (http.client.HTTPException, OSError) as error:
                raise self._failure(error) from error
        except (http.client.HTTPException, OSError) as error:
            raise self._failure(error) from error

    def _exchange(self, query: Query, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        try:
            self._connection.request("POST", self._prefix + query.path, query.body, headers)
            response = self._connection.getresponse()
            body = response.read(_LARGEST_ANSWER + 1)
        except BaseException:
            self._connection.close()
            raise
        if len(body) > _LARGEST_ANSWER:
            self._connection.close()
            raise RemoteError(
                f"the answer of {self.url} is larger than {_LARGEST_ANSWER >> 20} MiB; is it the right server?"
            )
        return response.status, dict(response.headers.items()), body

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteError(
                f"the certificate of {self.url} is not accepted ({sentence(error.verify_message)}); give the authority "
                "that signed it with --ca"
            )
        if isinstance(error, ssl.SSLError):
            return RemoteError(
                f"no encrypted connection to {self.url} ({sentence(error.reason or error)}); does it speak TLS, and "
                "want a client certificate (--cert)?"
            )
        if isinstance(error, TimeoutError):
            return Unavailable(f"no answer within {self.timeout:g} s")
        return Unavailable(sentence(getattr(error, "strerror", None) or error or type(error).__name__))


def tls_context(security: Security) -> ssl.SSLContext:
    """Verifies the server's certificate and its name; TLS 1.2 or newer.

    Raises:
        ConfigError: a certificate file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=None if security.ca is None else str(security.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if security.cert is not None:
            chain, key = security.cert
            context.load_cert_chain(str(chain), str(key), password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificates cannot be used ({sentence(error)}); give PEM files") from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the private key has a passphrase")


def _reason(body: bytes) -> str:
    try:
        return sentence(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return sentence(body[:300].decode("utf-8", "replace"))


def _retry_after(headers: dict[str, str]) -> float | None:
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return float(value) if value.isdecimal() else None
