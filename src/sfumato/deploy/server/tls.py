"""Certificates of both transports, checked at the start and read again at a reload."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sfumato.deploy.server.settings import ServeConfig
from sfumato.errors import ConfigError

__all__ = ["Certificates"]


class Certificates:
    """The server's certificate and the authority of its clients.

    Args:
        config: `tls_cert`, `tls_key` and `client_ca`.

    Raises:
        ConfigError: a file is missing, no PEM, the key is another one's, or the certificate has expired.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self.context: ssl.SSLContext | None = None
        self.mutual = config.client_ca is not None
        self._pem: tuple[bytes, bytes, bytes | None] | None = None
        if config.tls_cert is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_2
            self.reload()

    def reload(self) -> None:
        """Read the files again; new connections get the new certificate."""
        cert, key, authority = self._config.tls_cert, self._config.tls_key, self._config.client_ca
        if self.context is None or cert is None or key is None:
            return
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # tried out first: a bad file must not spoil the working one
        pem = (_bytes(key), _bytes(cert), None if authority is None else _bytes(authority))
        _check_dates(cert, pem[1])
        for context in (fresh, self.context):
            _load(context, cert, key, authority)
        self._pem = pem

    def grpc_credentials(self) -> Any:
        """Credentials of a gRPC port that follow `reload`; None without TLS."""
        if self.context is None:
            return None
        import grpc

        def current() -> Any:
            if self._pem is None:  # pragma: no cover - set by the constructor wherever there is a context
                raise AssertionError
            key, chain, authority = self._pem
            return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

        return grpc.dynamic_ssl_server_credentials(current(), current, require_client_authentication=self.mutual)


def _load(context: ssl.SSLContext, cert: Path, key: Path, authority: Path | None) -> None:
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"{cert} and {key} are no certificate with its private key in PEM without a passphrase ({_reason(error)})"
        ) from error
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{authority} holds no certificates in PEM ({_reason(error)})") from error
        context.verify_mode = ssl.CERT_REQUIRED


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give a file in PEM") from error


def _check_dates(path: Path, pem: bytes) -> None:
    try:
        from cryptography import x509
    except ImportError:
        raise ConfigError("TLS needs the package cryptography; install sfumato[serve]") from None
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM ({_reason(error)})") from error
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"the certificate {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
