"""Files: written so that a crash, a kill or a full disk never costs what was there before; read with one sentence."""

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError, StorageError

__all__ = [
    "append_line",
    "json_line",
    "occupied",
    "read_json",
    "require_regular",
    "sha256_of",
    "unwritable",
    "write_atomic",
    "write_json",
    "write_text",
]

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_LARGEST = 64 << 20  # bytes of a JSON file; a results file has some kilobytes


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it over `path`.

    Readers see the old file or the new one, never a part. On any failure the temporary file is removed and
    the old file stays.

    Raises:
        StorageError: the operating system refused (no space, no permission, a read-only file system).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; results are ordinary ones
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error, "what was there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `write_atomic`).

    Bytes of a path that are no UTF-8 become escapes, which JSON reads back as they were.
    """
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically (see `write_atomic`); NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, *, remedy: str = "delete it and run the command again") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file is missing, damaged, unreasonably large, or holds something else; the sentence ends
            in the remedy.
    """
    try:
        if require_regular(path).st_size > _LARGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        reason = "it holds no JSON object"
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise CheckpointError(f"{path} is damaged ({reason}); {remedy}")


def json_line(values: dict[str, Any]) -> str:
    """The values as one line of JSON; a number that is not finite becomes null, since NaN is not JSON.

    >>> json_line({"epoch": 3, "loss": float("nan")})
    '{"epoch": 3, "loss": null}'
    """
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False)


def require_regular(path: Path) -> os.stat_result:
    """What the system says about a file; reading a pipe would wait for whoever writes into it.

    Raises:
        OSError: the file is missing, or a pipe, a device or a folder.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path.name} is no ordinary file")
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    require_regular(path)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; the operating system frees it when the process ends, however it ends.

    Raises:
        CheckpointError: another process has it.
        StorageError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"another process is at work in {folder}; wait until it has ended, or choose another folder"
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError, besides: str = "") -> StorageError:
    """The sentence for what the system refuses to write, with the remedy for its reason."""
    if error.errno in _FORBIDDEN:
        remedy = "choose another folder, one that you may write to"
    elif error.errno in _IN_THE_WAY:
        remedy = "a file or folder of that name is in the way: choose another folder"
    else:  # a full disk; safetensors, too, gives its reason without a number
        remedy = "free some space or choose another folder"
    reason = f"{error.strerror or error}; {remedy}"
    return StorageError(f"cannot write {path}: {reason}" + (f" ({besides})" if besides else ""))


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it; a reader of a growing log never sees half a line for long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
    except OSError as error:
        raise unwritable(path, error) from error
