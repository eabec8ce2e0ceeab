"""Signatures of bundles: Ed25519 over the bytes of the manifest, which holds the digests of everything else."""

import base64
import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.deploy.files import create_file, read_regular, read_secret
from sfumato.errors import BundleError, ConfigError, StorageError
from sfumato.files import write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["SIGNATURE", "fingerprint", "new_key", "private_key", "public_keys", "sign", "verify_signature"]

SIGNATURE = "manifest.sig"

# Bytes in front of what is signed, so that a signature made for another purpose never fits a manifest.
_PURPOSE = b"sfumato bundle manifest 2\n"
_LARGEST = 1 << 20
_PEM = re.compile(rb"-----BEGIN [^-]+-----.+?-----END [^-]+-----", re.DOTALL)


def new_key(path: Path) -> Path:
    """Make an Ed25519 key pair: `path` (PEM, PKCS 8, mode 0600) and `path`.pub (PEM) beside it; give the latter.

    A StorageError says that a file is there already, which is never overwritten, or cannot be written.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    beside = path.with_name(path.name + ".pub")
    try:
        create_file(path, secret, 0o600)
        try:
            create_file(beside, public, 0o644)
        except OSError:
            path.unlink()  # half a pair is of no use, and would be in the way
            raise
    except OSError as error:
        raise StorageError(
            f"cannot write the key {error.filename or path}: {error.strerror}; choose another name (a key is never "
            "overwritten)"
        ) from error
    return beside


def private_key(path: Path) -> "Ed25519PrivateKey":
    """Read an Ed25519 private key in PEM without a passphrase; a ConfigError says why it is refused."""
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = read_secret(path, "signing key")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except Exception as error:  # wrong PEM, a passphrase, an algorithm that is not built in: many types
        raise ConfigError(f"{path} is no Ed25519 private key in PEM without a passphrase; give one of those") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind; make one with `sfumato export --new-key PATH`")
    return key


def public_keys(source: Any) -> "list[Ed25519PublicKey]":
    """Ed25519 public keys, and nothing else (ConfigError), from one source or a list of them.

    A source is PEM bytes or the path of a PEM file, with one or several keys, or such a key itself.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(source, list | tuple):
        if not source:
            raise ConfigError("the list of trusted keys is empty; give at least one public key")
        return [key for part in source for key in public_keys(part)]
    if isinstance(source, Ed25519PublicKey):
        return [source]
    name = "the given value" if isinstance(source, bytes) else source
    try:
        data = source if isinstance(source, bytes) else read_regular(Path(source), _LARGEST)
        keys = [serialization.load_pem_public_key(part) for part in _PEM.findall(data) or [data]]
    except OSError as error:
        raise ConfigError(f"cannot read the public key {name}: {error.strerror}; give a PEM file") from error
    except Exception as error:
        raise ConfigError(f"{name} is no Ed25519 public key in PEM; give the .pub file of the signing key") from error
    if not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise ConfigError(f"{name} holds a public key of another kind; give Ed25519 ones")
    return keys


def fingerprint(key: "Ed25519PublicKey") -> str:
    """First 16 hexadecimal digits of the SHA-256 of the key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(folder: Path, key: "Ed25519PrivateKey") -> str:
    """Write `manifest.sig` over the bytes of a folder's `manifest.json`; give the key's fingerprint."""
    name = fingerprint(key.public_key())
    signature = base64.b64encode(key.sign(_PURPOSE + (folder / "manifest.json").read_bytes())).decode()
    write_json(folder / SIGNATURE, {"algorithm": "ed25519", "key": name, "signature": signature})
    return name


def verify_signature(folder: Path, content: bytes, trusted: Any) -> str:
    """Check `manifest.sig` against the bytes of `manifest.json`; give the fingerprint of the key that signed it.

    A BundleError says that there is no signature, or that it is damaged, of no trusted key or of another content. Of
    several `trusted` keys, as `public_keys` takes them, any one suffices.
    """
    from cryptography.exceptions import InvalidSignature

    keys = public_keys(trusted)
    path = folder / SIGNATURE
    try:
        value = json.loads(read_regular(path, _LARGEST))
        signature = base64.b64decode(value["signature"], validate=True)
        signer = str(value["key"])[:16]
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is not signed and a signature is required; export it with `--sign KEY`, or get a signed copy"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}); get a signed copy of the bundle") from error
    for key in keys:
        with contextlib.suppress(InvalidSignature):
            key.verify(signature, _PURPOSE + content)
            return fingerprint(key)
    known = [fingerprint(key) for key in keys]
    reason = "has been changed since it was signed" if signer in known else f"was signed by the key {signer}"
    raise BundleError(
        f"the manifest in {folder} {reason}, and the trusted keys are {', '.join(known)}; do not use this bundle"
    )


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise ConfigError("signatures need the package cryptography; install sfumato[edge]") from None
    return serialization
