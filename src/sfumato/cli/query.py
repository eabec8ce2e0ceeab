"""`sfumato query`: ask a served bundle about images, as a device does."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli.console import table
from sfumato.cli.parser import CommandParser, save_json
from sfumato.deploy.edge import EdgeClient
from sfumato.errors import ConfigError

__all__ = ["run"]

_SHOWN = 3


def run(words: Sequence[str]) -> None:
    """Parse, ask and show."""
    parser = CommandParser(
        "query",
        "Encode images here, add noise, and ask a server what they show; only the noisy feature is sent.",
        "sfumato query bundles/first photo.png --url http://127.0.0.1:8080",
    )
    parser.add_argument("bundle", type=str, help="folder with manifest.json and encoder.onnx")
    parser.add_argument("images", type=str, nargs="+", help="image files")
    parser.add_argument("--url", type=str | None, default=None, help="of the server")
    parser.add_argument("--offline", action="store_true", help="run the bundle's own decoder here instead of asking")
    parser.add_argument("--token_file", type=str | None, default=None, help="file with the bearer token")
    parser.add_argument(
        "--ca", type=str | None, default=None, help="PEM of the authority behind the server's certificate"
    )
    parser.add_argument(
        "--cert",
        type=str | None,
        nargs=2,
        default=None,
        metavar=("CHAIN", "KEY"),
        help="PEM files that the client shows",
    )
    parser.add_argument("--device_key", type=str | None, default=None, help="the device's secret; made if missing")
    parser.add_argument(
        "--key",
        type=str | None,
        default=None,
        help="PEM file with Ed25519 public keys, any one of which must have signed the bundle",
    )
    parser.add_argument("--allow_no_noise", action="store_true", help="accept a bundle that adds no noise")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for the whole query")
    parser.add_argument("--retries", type=int, default=3, help="how often the same bytes are sent again")
    parsed = parser.read(words)
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
    table("", ("image", "class", "probabilities"), rows)
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
