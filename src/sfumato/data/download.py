"""Fetching one file whose content is known in advance."""

import http.client
from pathlib import Path
from typing import Any

from sfumato.data.imageset import Progress
from sfumato.errors import DataError
from sfumato.files import sha256_of, write_atomic

__all__ = ["fetch"]

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30


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

    def online(action: Any, *args: Any, **options: Any) -> Any:
        # Errors of the network and of the disk are both OSError; only the former may be blamed on the network.
        try:
            return action(*args, **options)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise DataError(f"cannot download {url}: {reason}; without a network connection, {by_hand}") from error

    def write(temporary: Path) -> None:
        response = online(urlopen, url, timeout=_TIMEOUT_SECONDS)
        with response, temporary.open("wb") as handle:
            total = int(response.headers.get("Content-Length") or 0)
            while block := online(response.read, _BLOCK):
                handle.write(block)
                if progress is not None:
                    progress(handle.tell(), total)
        if (digest := sha256_of(temporary)) != sha256:
            raise DataError(
                f"{url} gave {temporary.stat().st_size} bytes with SHA-256 {digest[:16]}... instead of "
                f"{sha256[:16]}...: an interrupted or altered download, which was removed; try again, or {by_hand}"
            )

    write_atomic(path, write)
