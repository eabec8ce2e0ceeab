"""Why a request is not answered: one reason, its HTTP status, its gRPC status, and a sentence for the client."""

from dataclasses import dataclass

__all__ = [
    "BUSY",
    "FORBIDDEN_METHOD",
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
    """A kind of refusal.

    Attributes:
        name: in metrics and logs.
        http: the status of REST.
        grpc: the name of gRPC's status.
        retry: whether the same request may succeed later.
    """

    name: str
    http: int
    grpc: str
    retry: bool = False


INVALID = Reason("invalid", 400, "INVALID_ARGUMENT")
UNAUTHENTICATED = Reason("unauthenticated", 401, "UNAUTHENTICATED")
UNKNOWN = Reason("unknown", 404, "NOT_FOUND")
FORBIDDEN_METHOD = Reason("method", 405, "UNIMPLEMENTED")
STALLED = Reason("stalled", 408, "DEADLINE_EXCEEDED")
TOO_LARGE = Reason("too_large", 413, "RESOURCE_EXHAUSTED")
UNSUPPORTED = Reason("unsupported", 415, "INVALID_ARGUMENT")
BUSY = Reason("busy", 429, "UNAVAILABLE", retry=True)
INTERNAL = Reason("internal", 500, "INTERNAL")
LATE = Reason("late", 503, "DEADLINE_EXCEEDED", retry=True)


class Refusal(Exception):
    """A request that gets no answer but a sentence. It never holds values of the client's tensors."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
