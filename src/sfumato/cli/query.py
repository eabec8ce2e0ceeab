"""`sfumato query`: ask a served bundle about images or texts, as a device does."""

from pathlib import Path

from sfumato.cli.console import table
from sfumato.cli.parser import Parsed, save_json
from sfumato.deploy.edge import EdgeClient
from sfumato.errors import ConfigError

_SHOWN = 3


def run(parsed: Parsed) -> None:
    """Ask and show."""
    if (parsed.url is None) != parsed.offline:
        raise ConfigError("say whom to ask: --url ADDRESS, or --offline for the bundle's own decoder")
    client = EdgeClient(
        parsed.bundle,
        parsed.url,
        token=_token(parsed.token_file),
        ca=parsed.ca,
        cert=None if parsed.cert is None else (parsed.cert[0], parsed.cert[1]),
        device_key=parsed.device_key,
        require_signature=parsed.key,
        allow_no_noise=parsed.allow_no_noise,
        timeout=parsed.timeout,
        retries=parsed.retries,
    )
    with client:
        found = client.predict_batch(parsed.images)
    rows = []
    for path, one in zip(parsed.images, found, strict=True):
        shown = ", ".join(f"{name} {share:.1%}" for name, share in list(one.probabilities.items())[:_SHOWN])
        rows.append((str(path), one.label, shown))
    table("", (client.manifest.input.name, "class", "probabilities"), rows)
    answers = [
        {"image": str(path), "class": one.label, "index": one.index, "probabilities": one.probabilities}
        for path, one in zip(parsed.images, found, strict=True)
    ]
    save_json(parsed.json, {"bundle": parsed.bundle, "answers": answers})


def _token(path: str | None) -> str | None:
    """The first token of a file, such as the server's own; on the command line every user of the machine sees it."""
    if path is None:
        return None
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the token file {path} ({error}); give a text file") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"the token file {path} is empty; write the token into it")
    return tokens[0]
