"""Fetching one file whose content is known in advance."""

import hashlib
import http.client
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sfumato.data.imageset import Progress
from sfumato.errors import DataError
from sfumato.files import write_atomic

__all__ = ["fetch"]

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30
_T = TypeVar("_T")


def fetch(url: str, path: Path, *, sha256: str, page: str, progress: Progress | None = None) -> None:
    """Download `url` to `path`, which appears only once its SHA-256 is the expected one.

    Args:
        url: of the file.
        path: where to put it; an interrupted download leaves nothing.
        sha256: the expected digest, hexadecimal.
        page: the web page on which a person finds the file, for messages.
        progress: called with (bytes so far, bytes in all; 0 if the server does not say).

    Raises:
        DataError: the network or the server failed, or what came is another file.
        StorageError: `path` cannot be written.
    """
    from urllib.request import urlopen

    by_hand = f"get {path.name} from {page} and put it into {path.parent}"

    def online(action: Callable[[], _T]) -> _T:
        # Errors of the network and of the disk are both OSError; only the former may be blamed on the network.
        try:
            return action()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise DataError(f"cannot download {url}: {reason}; without a network connection, {by_hand}") from error

    def write(temporary: Path) -> None:
        digest = hashlib.sha256()
        response: Any = online(lambda: urlopen(url, timeout=_TIMEOUT_SECONDS))
        with response, temporary.open("wb") as handle:
            total = int(response.headers.get("Content-Length") or 0)
            while block := online(lambda: response.read(_BLOCK)):
                digest.update(block)
                handle.write(block)
                if progress is not None:
                    progress(handle.tell(), total)
            size = handle.tell()
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{url} gave {size} bytes with SHA-256 {digest.hexdigest()[:16]}... instead of {sha256[:16]}...: "
                f"an interrupted or altered download, which was removed; try again, or {by_hand}"
            )

    write_atomic(path, write)
