"""The folder of a search: what it is a search for, and one small JSON per finished training.

search.json     settings, floor, grid and the data's fingerprint; another search is refused
trials/         one result per training, named after everything that decides it
work/           checkpoints of trainings that run
tune.json       the result, written at the end of every call
"""

import json
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError
from sfumato.experiments.store import Store
from sfumato.files import read_json, write_json

__all__ = ["SearchFolder"]


class SearchFolder:
    """One search's folder, claimed for it.

    Args:
        path: of the folder.
        identity: everything that decides the result, as flat plain values by name.

    Raises:
        CheckpointError: the folder belongs to another search, or its `search.json` is damaged.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        mine = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        place = path / "search.json"
        if not place.exists():
            write_json(place, mine)
        elif (theirs := read_json(place)) != mine:
            names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
            changed = ", ".join(f"{name} {_short(theirs.get(name))} -> {_short(mine.get(name))}" for name in names)
            raise CheckpointError(f"{path} holds another search ({changed}); choose another --run folder")
        self.store = Store(path / "trials", locks=path / "work" / "locks")
        self.work = path / "work"

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result."""
        write_json(self.path / "tune.json", result)


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
