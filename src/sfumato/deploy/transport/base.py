"""What every way to a decoder offers, and the retries that all share."""

import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.messages import Query, Tensors
from sfumato.errors import RemoteError

__all__ = ["Remote", "Security", "Transport", "Unavailable", "sentence"]

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Security:
    """What the client shows and what it expects to see.

    Attributes:
        token: bearer token, or None.
        ca: PEM file of the authorities that may have signed the server's certificate; None takes the system's.
        cert: PEM files (certificate chain, private key) of the client's own certificate, or None.
    """

    token: str | None = None
    ca: Path | None = None
    cert: tuple[Path, Path] | None = None


class Unavailable(Exception):
    """The server could not be asked now; the same bytes may be sent again.

    Args:
        reason: for the user.
        pause: seconds after which the server wants to be asked again, or None.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Transport(ABC):
    """A way to a decoder."""

    @abstractmethod
    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors:
        """The decoder's tensors for a released feature (n, ...).

        Raises:
            RemoteError: the server cannot be reached, refuses, or answers something else than the protocol says.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the connection back."""


class Remote(Transport):
    """Asks one server; a leaf encodes a query and sends it once.

    Args:
        url: of the server.
        security: token and certificates.
        timeout: seconds to wait for one answer.
        retries: how often the same bytes are sent again when the server cannot be reached or is busy.

    Raises:
        ConfigError: the address or a certificate is none.
    """

    name: ClassVar[str]
    host: str
    encrypted: bool

    def __init__(self, url: str, security: Security, *, timeout: float, retries: int) -> None:
        self.url = url
        self.security = security
        self.timeout = timeout
        self.retries = retries

    def ask(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Tensors:
        """Encode once, send until there is an answer or the retries are used up."""
        query = self.encode(manifest, feature)
        pause = _FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                return self.send(manifest, query)
            except Unavailable as error:
                if attempt == self.retries:
                    raise RemoteError(
                        f"{self.url} cannot be asked now: {error}; is it running, and reachable?"
                    ) from error
                time.sleep(min(_LONGEST_PAUSE, max(pause, error.pause or 0.0)))
                pause *= 2
        raise AssertionError  # the loop returns or raises

    @abstractmethod
    def encode(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
        """The bytes of a query."""

    @abstractmethod
    def send(self, manifest: Manifest, query: Query) -> Tensors:
        """Send a query once.

        Raises:
            Unavailable: it makes sense to send it again.
            RemoteError: it does not.
        """


def sentence(text: object) -> str:
    """One printable line of what a server or a library said, without its full stop."""
    line = " ".join(re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", str(text)).split())[:_LONGEST_REASON]
    return line.rstrip(". ") or "no reason given"
