"""`sfumato serve`: decoders behind the Open Inference Protocol."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.cli.parser import CommandParser, add_settings, settings
from sfumato.serve import ServeConfig, serve

__all__ = ["parser", "run"]


def run(words: Sequence[str]) -> None:
    """Parse and serve until told to stop."""
    parsed = parser().read(words)
    chosen = settings(parsed, ServeConfig)
    announce = None if parsed.json is None else Path(parsed.json)
    serve(replace(chosen, bundles=tuple(map(Path, parsed.bundles)), announce=announce))


def parser() -> CommandParser:
    """What `sfumato serve` understands."""
    made = CommandParser(
        "serve",
        "Serve the decoders of exported bundles over REST (Open Inference Protocol 2) until SIGTERM. SIGHUP or "
        "`sfumato reload` reads bundles, tokens and certificates again without dropping a request. Events are JSON "
        "lines on standard error; --json writes the address once requests are answered.",
        "sfumato serve bundles/first --port 8080",
    )
    made.add_argument("bundles", nargs="+", type=str, help="folders made by `sfumato export`")
    add_settings(made, ServeConfig, skip={"bundles", "announce"})
    return made
