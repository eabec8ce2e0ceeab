"""The server's certificate and the authority of its clients, read once for each generation."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from sfumato.errors import ConfigError, first_line
from sfumato.serve.settings import ServeConfig

__all__ = ["tls_context"]


def tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    """A context of TLS 1.2 or newer from `tls_cert`, `tls_key` and `client_ca`; None without a certificate.

    Raises:
        ConfigError: a file is missing or no PEM, the key is another one's, or the certificate is not valid today.
    """
    cert, key, authority = config.tls_cert, config.tls_key, config.client_ca
    if cert is None or key is None:
        return None
    _check_dates(cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
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
    return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _check_dates(path: Path) -> None:
    """Every certificate of the chain: one that has expired is what clients would stumble over."""
    try:
        from cryptography import x509
    except ImportError:
        raise ConfigError("TLS needs the package cryptography; install sfumato[serve]") from None
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give a file in PEM") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM ({_reason(error)})") from error
    now = datetime.now(UTC)
    for certificate in chain:
        if certificate.not_valid_after_utc <= now:
            raise ConfigError(f"the certificate {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it")
        if certificate.not_valid_before_utc > now:
            raise ConfigError(
                f"the certificate {path} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; "
                "check the clock of this machine, or give one that is valid"
            )


def _reason(error: Exception) -> str:
    return first_line(error)
