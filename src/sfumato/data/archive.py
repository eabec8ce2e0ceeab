"""Files by name, from a folder or straight from a `.tar.gz` without unpacking it."""

import tarfile
import zlib
from pathlib import Path

from sfumato.errors import DataError

__all__ = ["read_members"]

# The largest official file has 154 MB; a small archive must not be able to fill the memory.
_MAX_BYTES = 1 << 29


def read_members(source: Path, folder: str, names: tuple[str, ...], page: str) -> dict[str, bytes]:
    """The content of `folder/<name>` for each name, from the archive `source`, or of `source/<name>` if it is a folder.

    Members are compared by their full name and read into memory: nothing is written, so no path in an archive can lead
    anywhere.

    Raises:
        DataError: a file is missing, or the archive is damaged; the message tells to get it anew from `page`.
    """
    found = _from_folder(source, names) if source.is_dir() else _from_archive(source, folder, names, page)
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{source} has no {', '.join(missing)}; get the complete archive from {page}")
    return found


def _from_folder(source: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        return {name: (source / name).read_bytes() for name in names if (source / name).is_file()}
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; check the file's permissions") from error


def _from_archive(source: Path, folder: str, names: tuple[str, ...], page: str) -> dict[str, bytes]:
    wanted = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                if member.size > _MAX_BYTES:
                    raise tarfile.TarError(f"{member.name} claims {member.size} bytes")
                handle = tar.extractfile(member)
                found[name] = handle.read() if handle is not None else b""
                if len(found) == len(wanted):
                    break
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{source} is truncated or damaged ({error}); delete it and get it anew from {page}") from error
    return found
