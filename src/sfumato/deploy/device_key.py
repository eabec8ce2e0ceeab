"""The device's secret: 32 bytes of the operating system, in a file that only its owner can read."""

import os
import time
from pathlib import Path

from sfumato.deploy.files import create_file, read_secret
from sfumato.deploy.noise import KEY_BYTES
from sfumato.errors import ConfigError, StorageError

__all__ = ["DEFAULT_PATH", "load_device_key"]

DEFAULT_PATH = "~/.config/sfumato/device.key"

_PATIENCE = 2.0  # seconds for another process that is making the key


def load_device_key(source: Path | str | bytes | None = None) -> bytes:
    """The key from a file, which is made on first use, or from the bytes of a key store.

    Two devices with one key draw the same noise for the same input: make the key on the device, never in the image of
    a container or of a disk. A lost key costs nothing but the repetition of earlier noise.

    Args:
        source: path of the file, 32 bytes, or None for `~/.config/sfumato/device.key`.

    Raises:
        ConfigError: it is not 32 bytes, others may read the file, or there is no home folder for the default.
        StorageError: the file cannot be made.
    """
    if isinstance(source, bytes):
        return _checked(source, "the given device key")
    try:
        path = Path(DEFAULT_PATH if source is None else source).expanduser()
    except RuntimeError:
        raise ConfigError("this user has no home folder to keep the device key in; give a --device-key file") from None
    if not path.exists():
        try:
            create_file(path, os.urandom(KEY_BYTES), 0o600)
        except FileExistsError:
            pass  # of two processes that start together one makes the file, and the other waits for its content
        except OSError as error:
            raise StorageError(
                f"cannot make the device key {path}: {error.strerror}; give a --device-key in a folder that can be "
                "written"
            ) from error
    data, deadline = read_secret(path, "device key"), time.monotonic() + _PATIENCE
    while len(data) < KEY_BYTES and time.monotonic() < deadline:
        time.sleep(0.01)
        data = read_secret(path, "device key")
    return _checked(data, str(path))


def _checked(data: bytes, name: str) -> bytes:
    if len(data) != KEY_BYTES or len(set(data)) == 1:
        raise ConfigError(f"{name} is not a key of {KEY_BYTES} random bytes; delete it and let a new one be made")
    return data
