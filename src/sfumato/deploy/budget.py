"""How often one input may be asked about with fresh noise: K answers average the noise down to Sigma / K."""

import os
from collections import Counter
from pathlib import Path
from typing import IO, Any

from sfumato.errors import ConfigError, FeatureError, StorageError

__all__ = ["Budget"]

_RECORD = 16  # bytes: one keyed digest


class Budget:
    """Counts queries per input and refuses what is beyond the limit, or beyond its own memory.

    Digests come from `noise.input_digest`: without the device key nobody can tell from the counts what was asked. When
    the table is full, new inputs are refused, since to forget old ones would let them be asked again.

    With a file, the counts outlive the process and are shared by all processes that use it: each query appends one
    record under a lock before anything is sent.

    Args:
        limit: queries per input.
        path: file of the counts; None keeps them in this process only.
        capacity: inputs to remember.

    Raises:
        ConfigError: a number is below 1.
        StorageError: the file cannot be used.
    """

    def __init__(self, limit: int, path: Path | None = None, capacity: int = 200_000) -> None:
        if limit < 1 or capacity < 1:
            raise ConfigError(f"the budget is {limit} queries for each of {capacity} inputs; give at least 1 each")
        self.limit = limit
        self.capacity = capacity
        self._counts: Counter[bytes] = Counter()
        self._path = path
        self._file: IO[bytes] | None = None
        self._seen = 0
        self._process = os.getpid()
        if path is not None:
            self._file = _open(path)

    def charge(self, digest: bytes) -> None:
        """Take one query of this input off its budget, before anything is sent.

        Raises:
            FeatureError: the input has been asked about `limit` times, or the table is full.
            StorageError: the count cannot be written.
        """
        if self._file is None:
            self._check(digest)
            self._counts[digest] += 1
            return
        if self._process != os.getpid() and self._path is not None:
            # A forked child shares the parent's lock and position, so that neither would keep the other out.
            self._file.close()
            self._file, self._process = _open(self._path), os.getpid()
        try:
            with _Locked(self._file):
                self._catch_up(self._file)
                self._check(digest)
                self._file.write(digest)
                self._counts[digest] += 1
                self._seen += _RECORD
        except OSError as error:
            raise StorageError(
                f"cannot write the budget file {self._path}: {error.strerror}; nothing was sent"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _check(self, digest: bytes) -> None:
        if self._counts[digest] >= self.limit:
            raise FeatureError(
                f"this input was asked about {self.limit} times with fresh noise, which is its budget; answers to more "
                "would average the noise away (export with --noise memoised to allow repeats)"
            )
        if digest not in self._counts and len(self._counts) >= self.capacity:
            raise FeatureError(
                f"the budget's table is full ({self.capacity} inputs); start a new budget file when the old inputs are "
                "no longer of interest to anyone"
            )

    def _catch_up(self, file: IO[bytes]) -> None:
        """Count what other processes have appended; cut off half a record, whose query was never sent."""
        size = os.fstat(file.fileno()).st_size
        if size < self._seen:
            raise OSError(0, "it was shortened while in use")
        if size % _RECORD:
            size -= size % _RECORD
            file.truncate(size)
        file.seek(self._seen)
        while self._seen < size:
            data = file.read(min(size - self._seen, 1 << 20))
            for at in range(0, len(data) - len(data) % _RECORD, _RECORD):
                self._counts[data[at : at + _RECORD]] += 1
            self._seen += len(data) - len(data) % _RECORD
            file.seek(self._seen)


def _open(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "r+b", buffering=0)
    except OSError as error:
        raise StorageError(f"cannot use the budget file {path}: {error.strerror}; give another one") from error


class _Locked:
    """An advisory lock on a file, for as long as the block runs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __enter__(self) -> None:
        try:
            import fcntl
        except ImportError:
            raise ConfigError("a budget file needs a POSIX system; leave it out here") from None
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: Any) -> None:
        import fcntl

        fcntl.flock(self._file, fcntl.LOCK_UN)
