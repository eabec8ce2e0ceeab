"""Bundles on the disk: written aside and exchanged whole, opened with every check."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.deploy.manifest import MANIFEST
from sfumato.errors import ConfigError, StorageError

__all__ = ["replace_folder"]


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well; an older bundle there goes.

    A reader sees the old bundle or the new one, or for an instant none, never a mixture.

    Raises:
        ConfigError: `folder` holds something that is no bundle.
        StorageError: the operating system refused.
    """
    if folder.exists() and not (folder / MANIFEST).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something that is no bundle; choose another --out folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    try:
        fresh = aside / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(aside / "old")
        fresh.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        if (aside / "old").exists() and not folder.exists():
            (aside / "old").rename(folder)
        raise StorageError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
