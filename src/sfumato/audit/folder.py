"""The folder of an audit: what it belongs to, what was decided, what is done.

plan.json                  what the audit belongs to, and what was decided for each piece when it began
pieces/NAME.json           figures of a finished piece
pieces/NAME.safetensors    its values per image and reconstructed pixels
pieces/NAME.state          checkpoint of an attack while it trains
pieces/NAME.error.txt      traceback of a piece that failed
audit.json, report.html    written last
"""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import checkpoint
from sfumato.errors import CheckpointError, Interrupted, SfumatoError, StorageError, first_line
from sfumato.files import read_json, write_json, write_text


class AuditFolder:
    """Reads and writes one audit's files; everything is written aside and renamed.

    Attributes:
        failed: the pieces that failed, by name: `what`, `kind` and `why`.

    Raises:
        CheckpointError: the folder holds another audit, or a damaged file.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self._plan_path = path, path / "plan.json"
        self.failed: dict[str, dict[str, str]] = {}
        fresh: dict[str, Any] = {"identity": identity, "minutes": 0.0, "decided": {}, "again": [], "spent": 0.0}
        self._plan: dict[str, Any] = read_json(self._plan_path) if self._plan_path.exists() else fresh
        known, theirs = json.loads(json.dumps(identity)), self._plan["identity"]
        if changed := ", ".join(name for name in known if theirs.get(name) != known[name]):
            raise CheckpointError(f"{path} holds an audit with another {changed}; choose another --out or delete it")
        self._write()

    def _write(self, **changed: Any) -> None:
        self._plan |= changed
        write_json(self._plan_path, self._plan)

    @property
    def spent(self) -> float:
        """Seconds of earlier calls."""
        return float(self._plan["spent"])

    @property
    def minutes(self) -> float:
        """The largest budget that a call had."""
        return float(self._plan["minutes"])

    def extend(self, minutes: float) -> bool:
        """Give the audit so many minutes in all, and say whether a call before had fewer."""
        extended = 0 < self.minutes < minutes
        self._write(minutes=max(minutes, self.minutes))
        return extended

    def note_spent(self, seconds: float) -> None:
        """Remember how much of the budget is used up."""
        self._write(spent=round(seconds, 3))

    def decided(self, name: str) -> Any:
        """What was decided for `name`, or None."""
        return self._plan["decided"].get(name)

    def decide(self, name: str, value: Any) -> Any:
        """Decide once: an earlier decision stays; gives the one that holds."""
        if name not in self._plan["decided"]:
            self._write(decided=self._plan["decided"] | {name: json.loads(json.dumps(value))})
        return self._plan["decided"][name]

    def reopen(self, name: str) -> None:
        """Let a finished piece be done again; until it is, `finished` knows nothing of it, and `keep` takes it back."""
        self._plan["decided"].pop(name, None)
        self._write(again=[*self._plan["again"], name])

    def keep(self, name: str) -> None:
        """What was found before stands after all."""
        if name in self._plan["again"]:
            self._write(again=[one for one in self._plan["again"] if one != name])

    def _piece(self, name: str, suffix: str) -> Path:
        return self.path / "pieces" / f"{name.replace(':', '-')}.{suffix}"

    def state(self, name: str) -> Path:
        """Where the attack of a piece keeps its checkpoint."""
        return self._piece(name, "state")

    def finished(self, name: str) -> dict[str, Any] | None:
        """The figures of a finished piece."""
        path = self._piece(name, "json")
        return read_json(path) if name not in self._plan["again"] and path.exists() else None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The values of a finished piece."""
        return checkpoint.load(self._piece(name, "safetensors"))[0]

    def finish(self, name: str, figures: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        """Store a piece; its checkpoint is no longer needed."""
        if tensors:
            checkpoint.save(self._piece(name, "safetensors"), tensors, {"piece": name})
        write_json(self._piece(name, "json"), figures)
        self.keep(name)
        self.forget(name)
        self._piece(name, "error.txt").unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Remove what the attacks of a piece had reached."""
        for left in (self.path / "pieces").glob(f"{name.replace(':', '-')}.state*"):
            left.unlink(missing_ok=True)

    @contextmanager
    def surviving(self, what: str, kind: str) -> Iterator[None]:
        """Whatever goes wrong inside costs this piece alone; an interruption and a full disk end the audit."""
        try:
            yield
        except (Interrupted, StorageError):
            raise
        except Exception as error:  # the target's code, a library's, or ours
            write_text(self._piece(what, "error.txt"), traceback.format_exc())
            self.failed[what] = {"what": what, "kind": kind, "why": _why(error)}
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _why(error: Exception) -> str:
    words = first_line(error)
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if out_of_memory or (isinstance(error, RuntimeError) and "alloc" in str(error)):
        return f"it ran out of memory ({words}); audit on a larger machine, or with --limit fewer images"
    plain = isinstance(error, SfumatoError) or words == type(error).__name__
    return words if plain else f"{type(error).__name__}: {words}"
