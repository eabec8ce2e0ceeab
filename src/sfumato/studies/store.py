"""Results as files: one small JSON per finished piece of work, shared by any number of workers and calls."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sfumato.files import write_json


class Store:
    """A folder of results by key, where the key holds a digest of everything that decides the result.

    Files are written aside and renamed, so a reader sees a whole result or none. Whoever works on a key holds a lock
    that the operating system takes back when the process dies, however it dies.

    Args:
        folder: of the results.
        locks: folder of the lock files; `folder/.locks` where None.
    """

    def __init__(self, folder: Path, *, locks: Path | None = None) -> None:
        self.folder = folder
        self.locks = locks or folder / ".locks"

    def path(self, key: str) -> Path:
        """Where the result of `key` lies, or will lie."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> dict[str, Any] | None:
        """The result of `key`, or None where there is none.

        A damaged file, or one that another key's result was copied to, is set aside as `<key>.json.damaged` and
        counts as missing: it is measured again, never trusted.
        """
        path = self.path(key)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            value = None
        if isinstance(value, dict) and value.get("key") == key:
            return value
        # Two readers may both find the damage; the second one's rename finds nothing, which is fine.
        if path.exists():
            path.replace(path.with_name(path.name + ".damaged"))
        return None

    def write(self, key: str, result: dict[str, Any]) -> None:
        """Store a result.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_json(self.path(key), {"key": key, **result})

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold the lock of `key`; gives False, without waiting, where another process holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.locks / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
