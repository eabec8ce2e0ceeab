"""`sfumato serve`: decoders behind the Open Inference Protocol."""

from pathlib import Path

from sfumato.cli.parser import Parsed, given
from sfumato.errors import ConfigError
from sfumato.serve import ServeConfig, serve


def run(parsed: Parsed) -> None:
    """Serve until told to stop."""
    if parsed.json == "-":
        raise ConfigError("--json - is no file that `sfumato reload` could read the address from; give a path")
    announce = None if parsed.json is None else Path(parsed.json)
    own = {"bundles": tuple(map(Path, parsed.bundles)), "announce": announce}
    serve(ServeConfig(**given(parsed, ServeConfig) | own))
