"""Transports by name, each loaded when it is chosen."""

import ipaddress
import warnings

from sfumato.deploy.transport.base import Remote, Security
from sfumato.errors import ConfigError, SfumatoWarning

__all__ = ["connect", "names"]


def names() -> tuple[str, ...]:
    """The transports that `connect` knows."""
    return ("http", "grpc")


def connect(name: str, url: str, security: Security, *, timeout: float, retries: int) -> Remote:
    """A way to the server at `url`; nothing is sent yet.

    Raises:
        ConfigError: the name, the address, a certificate or a number is wrong, or a package is missing.
    """
    if not timeout > 0 or retries < 0:
        raise ConfigError(
            f"timeout is {timeout} and retries are {retries}; give seconds above 0, and 0 or more retries"
        )
    token = security.token
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ConfigError(
            "the token is empty or holds blanks or special characters; give the one that the server knows"
        )
    remote = _connect(name, url, security, timeout=timeout, retries=retries)
    if token is not None and not remote.encrypted and not _loopback(remote.host):
        warnings.warn(
            f"the token travels unencrypted to {remote.host}, where others can read it; ask over TLS",
            SfumatoWarning,
            stacklevel=4,
        )
    return remote


def _connect(name: str, url: str, security: Security, *, timeout: float, retries: int) -> Remote:
    if name == "http":
        from sfumato.deploy.transport.http import HttpTransport

        return HttpTransport(url, security, timeout=timeout, retries=retries)
    if name == "grpc":
        from sfumato.deploy.transport.grpc import GrpcTransport

        return GrpcTransport(url, security, timeout=timeout, retries=retries)
    raise ConfigError(f"unknown transport {name!r}; known are {', '.join(names())}")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
