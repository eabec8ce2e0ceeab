"""Signatures of bundles: Ed25519 over the manifest, which holds the hashes of everything else."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import BundleError, ConfigError, StorageError
from sfumato.files import write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["SIGNATURE", "fingerprint", "new_key", "private_key", "public_key", "sign", "verify_signature"]

SIGNATURE = "manifest.sig"

# Bytes in front of what is signed, so that a signature made for another purpose never fits a manifest.
_PURPOSE = b"sfumato bundle manifest 1\n"


def new_key(path: Path) -> Path:
    """Make an Ed25519 key pair: `path` (PEM, PKCS 8, mode 0600) and `path`.pub (PEM) beside it.

    Returns:
        The public key's path.

    Raises:
        StorageError: a file is there already, or cannot be written; a key is never overwritten.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    beside = path.with_name(path.name + ".pub")
    for target, data, mode in ((path, secret, 0o600), (beside, public, 0o644)):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
        except OSError as error:
            raise StorageError(
                f"cannot write the key {target}: {error.strerror}; choose another name (a key is never overwritten)"
            ) from error
    return beside


def private_key(path: Path) -> "Ed25519PrivateKey":
    """Read an Ed25519 private key in PEM, without a passphrase.

    Raises:
        ConfigError: it is no such key.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"cannot read the key {path}: {error.strerror}; make one with `sfumato export --new-key {path}`"
        ) from error
    except Exception as error:  # wrong PEM, a passphrase, an algorithm that is not built in: many types
        raise ConfigError(f"{path} is no Ed25519 private key in PEM without a passphrase; give one of those") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind; make one with `sfumato export --new-key PATH`")
    return key


def public_key(source: Any) -> "Ed25519PublicKey":
    """An Ed25519 public key from PEM bytes, the path of a PEM file, or such a key itself.

    Raises:
        ConfigError: it is no such key.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(source, Ed25519PublicKey):
        return source
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        key = serialization.load_pem_public_key(data)
    except OSError as error:
        raise ConfigError(f"cannot read the public key {source}: {error.strerror}; give a PEM file") from error
    except Exception as error:
        name = "the given value" if isinstance(source, bytes) else source
        raise ConfigError(f"{name} is no Ed25519 public key in PEM; give the .pub file of the signing key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{source} is a public key of another kind; give an Ed25519 one")
    return key


def fingerprint(key: "Ed25519PublicKey") -> str:
    """First 16 hexadecimal digits of the SHA-256 of the key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(folder: Path, content: bytes, key: "Ed25519PrivateKey") -> str:
    """Write `manifest.sig` for a manifest's canonical bytes; give the key's fingerprint."""
    name = fingerprint(key.public_key())
    signature = base64.b64encode(key.sign(_PURPOSE + content)).decode()
    write_json(folder / SIGNATURE, {"algorithm": "ed25519", "key": name, "signature": signature})
    return name


def verify_signature(folder: Path, content: bytes, key: Any) -> str:
    """Check `manifest.sig` against a manifest's canonical bytes; give the key's fingerprint.

    Raises:
        BundleError: there is no signature, it is damaged, of another key, or of another content.
        ConfigError: the key is none.
    """
    from cryptography.exceptions import InvalidSignature

    wanted = public_key(key)
    path = folder / SIGNATURE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        signature = base64.b64decode(value["signature"], validate=True)
        signer = str(value["key"])
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is not signed and a signature is required; export it with `--sign KEY`, or get a signed copy"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged ({error}); get a signed copy of the bundle") from error
    try:
        wanted.verify(signature, _PURPOSE + content)
    except InvalidSignature:
        known = fingerprint(wanted)
        reason = (
            f"was signed by the key {signer[:16]}, not by {known}"
            if signer != known
            else "has been changed since it was signed"
        )
        raise BundleError(f"the manifest in {folder} {reason}; do not use this bundle") from None
    return fingerprint(wanted)


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise ConfigError("signatures need the package cryptography; install sfumato[edge]") from None
    return serialization
