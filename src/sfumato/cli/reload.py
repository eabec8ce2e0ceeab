"""`sfumato reload`: a running server takes what is on the disk now, or stays as it is and says why."""

from pathlib import Path

from sfumato.cli.console import say
from sfumato.cli.parser import Parsed, save_json
from sfumato.serve import reload


def run(parsed: Parsed) -> None:
    """Signal, and wait for the outcome."""
    generation = reload(Path(parsed.server), parsed.timeout)
    say(f"generation {generation} serves")
    save_json(parsed.json, {"generation": generation})
