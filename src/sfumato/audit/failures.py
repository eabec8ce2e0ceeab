"""What fails in an audit is named, and the rest goes on."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sfumato.audit.folder import AuditFolder
from sfumato.errors import Interrupted, StorageError, first_line

__all__ = ["Failures"]


class Failures:
    """The pieces that failed, by name.

    Args:
        folder: of the audit, which gets the tracebacks.
    """

    def __init__(self, folder: AuditFolder) -> None:
        self._folder = folder
        self._found: dict[str, dict[str, str]] = {}

    def __contains__(self, what: str) -> bool:
        return what in self._found

    def note(self, what: str, kind: str, why: str) -> None:
        """Add a piece."""
        self._found[what] = {"what": what, "kind": kind, "why": why}

    def why(self, what: str) -> str:
        """The reason of one of them."""
        return self._found[what]["why"]

    def note_all(self, known: Sequence[dict[str, str]]) -> None:
        """What `as_list` gave in an earlier call."""
        for one in known:
            self.note(**one)

    def as_list(self) -> list[dict[str, str]]:
        """`what`, `kind` and `why` of each, in the order in which they failed."""
        return list(self._found.values())

    @contextmanager
    def surviving(self, what: str, kind: str) -> Iterator[None]:
        """Whatever goes wrong inside costs this piece alone; an interruption and a full disk end the audit."""
        try:
            yield
        except (Interrupted, StorageError):
            raise
        except Exception as error:  # the target's code, a library's, or ours
            self._folder.note_failure(what, traceback.format_exc())
            self.note(what, kind, _why(error))
        if what in self and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _why(error: Exception) -> str:
    words = first_line(error)
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if out_of_memory or (isinstance(error, RuntimeError) and "alloc" in str(error)):
        return f"it ran out of memory ({words}); audit on a larger machine, or with --limit fewer images"
    return words if words == type(error).__name__ else f"{type(error).__name__}: {words}"
