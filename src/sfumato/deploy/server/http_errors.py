"""Errors as HTTP has them."""

from fastapi import Response
from fastapi.responses import JSONResponse

from sfumato.deploy.server.refusals import STALLED, Reason, Refusal

__all__ = ["refused"]


def refused(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    """The protocol's error body with the status that belongs to the reason."""
    reason: Reason = refusal.reason
    headers = dict(headers or {})
    if reason.retry:
        headers["retry-after"] = "1"
    if reason.http == 401:
        headers["www-authenticate"] = "Bearer"
    if reason is STALLED:
        headers["connection"] = "close"
    return JSONResponse({"error": refusal.sentence}, reason.http, headers)
