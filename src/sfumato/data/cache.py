"""Decoded image folders kept as `.npy`, so that the second reading takes a fraction of a second.

An entry is a folder with `images.npy`, `labels.npy` and `key.json`, written last. The key holds a digest of the names,
sizes and modification times of the source files, and checksums of both arrays. Whatever does not fit is ignored and
written anew: a cache may cost time, never a result.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.errors import StorageError
from sfumato.files import write_atomic, write_json

__all__ = ["Arrays", "cache_entry", "read_entry", "write_entry"]

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Images (N, C, H, W) and labels (N,)."""

_FORMAT = 1


def cache_entry(source: Path, size: tuple[int, int] | None) -> Path | None:
    """The folder for what is read from `source` at `size`; none if there is no home to keep it in.

    It lies in $SFUMATO_CACHE, else in $XDG_CACHE_HOME/sfumato, else in ~/.cache/sfumato. One source has one entry per
    size, so a changed source replaces its old entry.
    """
    if chosen := os.environ.get("SFUMATO_CACHE"):
        root = Path(chosen)
    elif base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base) / "sfumato"
    else:
        try:
            root = Path.home() / ".cache" / "sfumato"
        except RuntimeError:
            return None
    name = hashlib.sha256(repr((str(source.resolve()), size)).encode()).hexdigest()[:16]
    return root / "folders" / name


def read_entry(entry: Path, key: str) -> Arrays | None:
    """The arrays stored under `key`, or none if there are none, they belong to other files, or they are damaged."""
    try:
        meta = json.loads((entry / "key.json").read_text(encoding="utf-8"))
        if meta["format"] != _FORMAT or meta["key"] != key:
            return None
        images, labels = _read_array(entry / "images.npy"), _read_array(entry / "labels.npy")
        if (_checksum(images), _checksum(labels)) != (meta["images"], meta["labels"]):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return images, labels


def write_entry(entry: Path, key: str, arrays: Arrays) -> None:
    """Store the arrays; does nothing where that is impossible, for example on a read-only or full disk."""
    images, labels = arrays
    meta = {"format": _FORMAT, "key": key, "images": _checksum(images), "labels": _checksum(labels)}
    try:
        write_atomic(entry / "images.npy", lambda path: _write_array(path, images))
        write_atomic(entry / "labels.npy", lambda path: _write_array(path, labels))
        write_json(entry / "key.json", meta)
    except StorageError:
        return


def _read_array(path: Path) -> npt.NDArray[Any]:
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False))


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    with path.open("wb") as handle:  # given a path, numpy would append .npy to it
        np.save(handle, array, allow_pickle=False)


def _checksum(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype.str} {array.shape} {zlib.crc32(array.data.cast('B')):08x}"
