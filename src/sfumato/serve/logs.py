"""Logs as JSON lines. Nothing that a client sent is in them: no feature, no token, no name, no path."""

import json
import sys
import time
import traceback
from typing import Any, TextIO

__all__ = ["Log"]


class Log:
    """Writes one line for each event, and for each request if told to; to standard error by default."""

    def __init__(self, stream: TextIO | None = None, *, requests: bool = True) -> None:
        self._stream = stream
        self._requests = requests

    def event(self, event: str, level: str = "info", **values: Any) -> None:
        """One event of the server itself."""
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        stream = sys.stderr if self._stream is None else self._stream
        try:
            stream.write(json.dumps({"time": stamp, "level": level, "event": event, **values}) + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # a log that nobody can read any more is no reason to stop answering

    def request(self, **values: Any) -> None:
        """One request that came to an end."""
        if self._requests:
            self.event("request", **values)

    def failure(self, error: BaseException) -> None:
        """An error nobody foresaw: its type and where, without its text, which may hold a client's values."""
        frames = traceback.extract_tb(error.__traceback__)[-5:]
        where = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
        self.event("failure", "error", error=type(error).__name__, where=where)
