"""Ways to a decoder: HTTP, gRPC, and none at all."""

from sfumato.deploy.transport.base import Security, Transport
from sfumato.deploy.transport.choice import connect, names

__all__ = ["Security", "Transport", "connect", "names"]
