"""Who may ask: bearer tokens, compared in constant time."""

import hashlib
import hmac
from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.serve.errors import UNAUTHENTICATED, Refusal

__all__ = ["Tokens"]

_SHORTEST = 16


class Tokens:
    """The accepted bearer tokens; without a file everybody is let in.

    Only SHA-256 digests are kept and compared, each with every one, so the time of a comparison depends neither on
    which token is right nor on how much of a wrong one is.

    Args:
        path: one token a line; empty lines and lines with # are skipped.

    Raises:
        ConfigError: the file cannot be read, holds no token, or one that is too short or has spaces.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._digests: list[bytes] | None = None
        if path is not None:
            self._digests = [_digest(token) for token in _read(path)]

    def check(self, header: bytes) -> None:
        """Let the bearer of an Authorization header pass.

        Raises:
            Refusal: UNAUTHENTICATED: no token, or a wrong one.
        """
        if self._digests is None:
            return
        scheme, _, token = header.partition(b" ")
        given = _digest(token.strip())
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(given, digest)
        if not known or scheme.lower() != b"bearer":
            raise Refusal(UNAUTHENTICATED, "a valid bearer token is needed in the Authorization header")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _read(path: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigError(
            f"cannot read the token file {path}: {error.strerror}; give a file with one token a line"
        ) from error
    tokens = [line for line in lines if line and not line.startswith(b"#")]
    if not tokens:
        raise ConfigError(f"{path} holds no token; put one a line, e.g. from `openssl rand -hex 32`")
    for token in tokens:
        if len(token) < _SHORTEST or len(token.split()) != 1:
            raise ConfigError(
                f"a token in {path} is shorter than {_SHORTEST} characters or has spaces; make a longer one"
            )
    return tokens
