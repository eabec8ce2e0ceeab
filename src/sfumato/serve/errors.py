"""Why a request is not answered: a reason with its HTTP status, and a sentence for the client."""

from dataclasses import dataclass

__all__ = [
    "BUSY",
    "FORBIDDEN_METHOD",
    "GONE",
    "INTERNAL",
    "INVALID",
    "LATE",
    "STALLED",
    "TOO_LARGE",
    "UNAUTHENTICATED",
    "UNKNOWN",
    "UNSUPPORTED",
    "Reason",
    "Refusal",
]


@dataclass(frozen=True)
class Reason:
    """A kind of refusal: its name in metrics and logs, HTTP's status, and the headers that belong to it."""

    name: str
    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()


_RETRY = ((b"retry-after", b"1"),)

INVALID = Reason("invalid", 400)
UNAUTHENTICATED = Reason("unauthenticated", 401, ((b"www-authenticate", b"Bearer"),))
UNKNOWN = Reason("unknown", 404)
FORBIDDEN_METHOD = Reason("method", 405)
STALLED = Reason("stalled", 408, ((b"connection", b"close"),))
TOO_LARGE = Reason("too_large", 413)
UNSUPPORTED = Reason("unsupported", 415)
GONE = Reason("gone", 499)
BUSY = Reason("busy", 429, _RETRY)
INTERNAL = Reason("internal", 500)
LATE = Reason("late", 503, _RETRY)


class Refusal(Exception):
    """A request that gets no answer but a sentence, which never holds values of the client's tensors."""

    def __init__(self, reason: Reason, sentence: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.headers = reason.headers + headers
