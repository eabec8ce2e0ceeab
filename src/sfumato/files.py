"""Writing files so that a crash, a kill or a full disk never costs what was there before."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.errors import StorageError

__all__ = ["append_line", "write_atomic", "write_json", "write_text"]


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
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
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder "
            "(what was there before is unchanged)"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `write_atomic`)."""
    write_atomic(path, lambda temporary: _write_utf8(temporary, text))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically (see `write_atomic`); NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it; a reader of a growing log never sees half a line for long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; free some space") from error


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
