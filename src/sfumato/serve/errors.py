"""Why a request is not answered: a reason with its HTTP status, and a sentence for the client."""

from typing import Final

__all__ = ["STATUS", "Refusal"]

STATUS: Final = {
    "invalid": 400,
    "unauthenticated": 401,
    "unknown": 404,
    "method": 405,
    "stalled": 408,
    "too_large": 413,
    "unsupported": 415,
    "gone": 499,
    "busy": 429,
    "internal": 500,
    "late": 503,
}
_RETRY = ((b"retry-after", b"1"),)
_HEADERS = {"unauthenticated": ((b"www-authenticate", b"Bearer"),), "busy": _RETRY, "late": _RETRY}


class Refusal(Exception):
    """A request that gets no answer but a sentence, which never holds values of the client's tensors.

    `reason` is one of `STATUS`, and its name in metrics and logs.
    """

    def __init__(self, reason: str, sentence: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(sentence)
        self.reason, self.status, self.sentence = reason, STATUS[reason], sentence
        self.headers = _HEADERS.get(reason, ()) + headers
