"""A generation: everything that its workers are made of, read from the disk at one moment and never changed."""

import hashlib
import hmac
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sfumato.deploy.files import read_regular
from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.errors import ConfigError, first_line
from sfumato.serve.errors import Refusal
from sfumato.serve.settings import ServeConfig

__all__ = ["Bundle", "Generation", "Tokens"]

_SHORTEST = 16
_LARGEST = 16 << 20  # bytes of a file of tokens or certificates


@dataclass(frozen=True)
class Bundle:
    """What a server needs of a bundle. The bytes that were hashed are what is run, whatever happens to the file."""

    folder: Path
    manifest: Manifest
    decoder: bytes


class Tokens:
    """The accepted bearer tokens, one a line of a file; without a file everybody is let in.

    Only SHA-256 digests are kept and compared, each with every one, so the time of a comparison depends neither on
    which token is right nor on how much of a wrong one is.
    """

    def __init__(self, path: Path | None) -> None:
        self._digests = None if path is None else [hashlib.sha256(token).digest() for token in _tokens(path)]

    def check(self, header: bytes) -> None:
        """Let the bearer of an Authorization header pass, or refuse."""
        scheme, _, token = header.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        same = [hmac.compare_digest(given, digest) for digest in self._digests or ()]
        if self._digests is not None and not (any(same) and scheme.lower() == b"bearer"):
            raise Refusal("unauthenticated", "a valid bearer token is needed in the Authorization header")


@dataclass(frozen=True, eq=False)
class Generation:
    """The input of workers. A worker that dies is replaced by one of the same generation."""

    number: int  # 1 at the start, one more with each reload
    bundles: tuple[Bundle, ...]
    tokens: Tokens
    tls: ssl.SSLContext | None

    @classmethod
    def read(cls, config: ServeConfig, number: int = 1) -> Self:
        """Read and verify everything; a SfumatoError says that a bundle, the tokens or a certificate is not good."""
        bundles: dict[tuple[str, str], Bundle] = {}
        for folder in config.bundles:
            manifest = Manifest.load(folder, require_signature=config.require_signature, files=())
            if other := bundles.get((manifest.name, manifest.version)):
                raise ConfigError(
                    f"{other.folder} and {folder} are both {manifest.name} version {manifest.version}; export one of "
                    "them with another --name or --version"
                )
            bundle = Bundle(folder, manifest, manifest.read_file(folder, DECODER))
            bundles[manifest.name, manifest.version] = bundle
        return cls(number, tuple(bundles.values()), Tokens(config.token_file), _tls_context(config))


def _tokens(path: Path) -> list[bytes]:
    lines = [line.strip() for line in _content(path, "the token file", "one token a line").splitlines()]
    tokens = [line for line in lines if line and not line.startswith(b"#")]
    if not tokens:
        raise ConfigError(f"{path} holds no token; put one a line, e.g. from `openssl rand -hex 32`")
    for token in tokens:
        if len(token) < _SHORTEST or len(token.split()) != 1:
            raise ConfigError(
                f"a token in {path} is shorter than {_SHORTEST} characters or has spaces; make a longer one"
            )
    return tokens


def _tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    """A context of TLS 1.2 or newer from `tls_cert`, `tls_key` and `client_ca`; None without a certificate."""
    cert, key, authority = config.tls_cert, config.tls_key, config.client_ca
    if cert is None or key is None:
        return None
    _content(key, "the private key", "PEM")
    if wrong := [sentence for sentence in _wrong_dates(cert) if sentence]:
        raise ConfigError(wrong[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password="")  # a passphrase is not asked for
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"{cert} and {key} are no certificate with its private key in PEM without a passphrase "
            f"({first_line(error)})"
        ) from error
    if authority is not None:
        if all(wrong := _wrong_dates(authority)):  # while authorities change, one may be out of date
            raise ConfigError(wrong[0])
        context.load_verify_locations(cadata=_content(authority, "the authorities", "PEM").decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _wrong_dates(path: Path) -> list[str]:
    """For each certificate of a file why it is not valid now, which is what clients would stumble over, or nothing."""
    try:
        from cryptography import x509
    except ImportError:
        raise ConfigError("TLS needs the package cryptography; install sfumato[serve]") from None
    try:
        certificates = x509.load_pem_x509_certificates(_content(path, "the certificate", "PEM"))
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM ({first_line(error)})") from error
    now, found = datetime.now(UTC), []
    for certificate in certificates:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        late = f"the certificate {path} expired on {ends:%Y-%m-%d}; renew it"
        early = (
            f"the certificate {path} is not valid before {begins:%Y-%m-%d %H:%M} UTC; check the clock of this machine, "
            "or give one that is valid"
        )
        found.append(late if ends <= now else early if begins > now else "")
    return found


def _content(path: Path, what: str, form: str) -> bytes:
    """Of a regular file: what has to be read again at a reload is no pipe."""
    try:
        return read_regular(path, _LARGEST)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}; give a file with {form}") from error
