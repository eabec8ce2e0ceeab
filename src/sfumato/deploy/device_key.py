"""The device's secret: 32 bytes of the operating system, in a file that only its owner can read."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from sfumato.deploy.noise import KEY_BYTES
from sfumato.errors import ConfigError, StorageError

__all__ = ["DEFAULT_PATH", "load_device_key"]

DEFAULT_PATH = "~/.config/sfumato/device.key"

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def load_device_key(source: Path | str | bytes | None = None) -> bytes:
    """The key from a file, which is made on first use, or from the bytes of a key store.

    Two devices with one key draw the same noise for the same input: make the key on the device, never in the image of
    a container or of a disk. A lost key costs nothing but the repetition of earlier noise.

    Args:
        source: path of the file, 32 bytes, or None for `~/.config/sfumato/device.key`.

    Raises:
        ConfigError: it is not 32 bytes, or others may read the file.
        StorageError: the file cannot be made.
    """
    if isinstance(source, bytes):
        return _checked(source, "the given device key")
    path = Path(DEFAULT_PATH if source is None else source).expanduser()
    if not path.exists():
        _make(path)
    try:
        with path.open("rb") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            data = handle.read(KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the device key {path}: {error.strerror}; give another --device-key") from error
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigError(f"others may read the device key {path}; run `chmod 600 {path}`, or delete it for a new one")
    return _checked(data, str(path))


def _checked(data: bytes, name: str) -> bytes:
    if len(data) != KEY_BYTES or len(set(data)) == 1:
        raise ConfigError(f"{name} is not a key of {KEY_BYTES} random bytes; delete it and let a new one be made")
    return data


def _make(path: Path) -> None:
    """Write a new key aside and link it into place: of two processes that start together, both read the first one's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(os.urandom(KEY_BYTES))
                handle.flush()
                os.fsync(handle.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.unlink(name)
    except OSError as error:
        raise StorageError(
            f"cannot make the device key {path}: {error.strerror}; give a --device-key in a folder that can be written"
        ) from error
