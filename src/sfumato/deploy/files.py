"""Files of a bundle and of a device: read through one bounded reader, written aside and exchanged whole."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.files import unwritable

__all__ = ["LARGEST_FILE", "create_file", "read_regular", "read_secret", "replace_folder"]

LARGEST_FILE = 2**31 - 1  # bytes of an ONNX file: no protobuf message is longer
_LARGEST_SECRET = 1 << 16


def read_regular(path: Path, most: int, *, private: bool = False) -> bytes:
    """The whole content of a regular file of at most `most` bytes; an OSError says why it is refused.

    A pipe, a device or a folder is refused before anything is read from it, and a file that grows is not followed. With
    `private`, so is a file that anybody but its owner can read.
    """
    # Without O_NONBLOCK opening a pipe waits for somebody to write into it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if private and os.name == "posix" and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError(errno.EACCES, "others may read it")
        data = handle.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes")
    return data


def read_secret(path: Path, what: str) -> bytes:
    """The content of a key file that only its owner can read; a ConfigError says why it is refused."""
    try:
        return read_regular(path, _LARGEST_SECRET, private=True)
    except OSError as error:
        remedy = f"run `chmod 600 {path}`" if error.strerror == "others may read it" else "give another file"
        raise ConfigError(f"cannot use the {what} {path}: {error.strerror}; {remedy}") from error


def create_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, whole or not at all; without hard links, which FAT and many mounts lack."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as handle:
            handle.write(data)
            os.fsync(handle.fileno())
    except OSError:
        path.unlink()
        raise


@contextmanager
def replace_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well; an older bundle there goes.

    A reader sees the old bundle or the new one, or for an instant none, never a mixture. An older bundle is known by
    the file `mark`; a ConfigError refuses to replace anything else.
    """
    if folder.exists() and not (folder / mark).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something that is no bundle; choose another --out folder")
    aside: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        fresh = aside / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(aside / "old")
        fresh.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        if aside is not None and (aside / "old").exists() and not folder.exists():
            (aside / "old").rename(folder)
        raise unwritable(folder, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Write a folder's names to the disk, where the system can: Windows and some mounts cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
