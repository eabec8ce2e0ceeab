"""Trials that take no time, importable in workers: every start leaves a file."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieces_of_work import begin, starts, wait_for

from sfumato.errors import DataError, Interrupted, SfumatoWarning
from sfumato.studies import Trial, Workspace


@dataclass(frozen=True)
class Fake(Trial):
    folder: str
    name: str
    alone: bool = False

    @property
    def key(self) -> str:
        return f"fake-{self.name}"

    @property
    def complete(self) -> bool:
        return self.name != "leaves a file" or (Path(self.folder) / "left").exists()

    def measure(self, workspace: Workspace) -> dict[str, Any]:
        begin(self.folder, self.name)
        if self.name == "fails":
            raise DataError("the set is empty; give another one")
        if self.name == "breaks":
            raise ZeroDivisionError("a bug")
        if self.name == "warns":
            warnings.warn("mind the gap", SfumatoWarning, stacklevel=1)
        if self.name == "leaves a file":
            (Path(self.folder) / "left").touch()
        if self.name == "waits":
            wait_for(Path(self.folder) / "go")
        if self.name == "tells":
            workspace.tell("half of it", 0.5)
            wait_for(Path(self.folder) / "go")
        if self.name == "long":
            while not workspace.should_stop():
                time.sleep(0.01)
            raise Interrupted("no time is left")
        return {"value": len(starts(self.folder, self.name))}
