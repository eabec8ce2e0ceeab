"""`sfumato reload`: a running server takes what is on the disk now, or stays as it is and says why."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli.parser import CommandParser, save_json
from sfumato.serve import reload

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse, signal, and wait for the outcome."""
    parser = CommandParser(
        "reload",
        "Have `sfumato serve --json PATH` on this machine read bundles, tokens and certificates again. If anything is "
        "not good, the server goes on with what it has; the exit code is then 2.",
        "sfumato reload at.json",
    )
    parser.add_argument("server", type=str, help="file that `sfumato serve --json` wrote")
    parser.add_argument("--timeout", type=float, default=300.0, help="longest wait in seconds")
    parsed = parser.read(words)
    generation = reload(Path(parsed.server), parsed.timeout)
    print(f"generation {generation} serves")
    save_json(parsed.json, {"generation": generation})
