"""`reload`: ask a running server for its next generation, and tell how that ended."""

import json
import os
import signal
import time
from pathlib import Path

from sfumato.errors import ConfigError, RemoteError

__all__ = ["reload"]


def reload(announced: Path, seconds: float = 300.0) -> int:
    """Have a server on this machine read bundles, tokens and certificates again.

    Args:
        announced: what `sfumato serve --json PATH` wrote.
        seconds: longest wait.

    Returns:
        The number of the generation that serves from now on.

    Raises:
        ConfigError: no server of this user runs there.
        RemoteError: something is not good; the server goes on with what it has.
    """
    before = _read(announced)
    _signal(before["pid"], announced)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = _read(announced)
        if now["reads"] > before["reads"]:
            if now["error"]:
                raise RemoteError(f"nothing was reloaded, and the server goes on with what it has: {now['error']}")
            return int(now["generation"])
        time.sleep(0.05)
    raise RemoteError(f"the server has not reloaded within {seconds:g} s; its log may say why")


def _read(path: Path) -> dict[str, int]:
    try:
        value = json.loads(path.read_bytes())
        return {**value, "pid": int(value["pid"]), "reads": int(value["reads"])}
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(
            f"no server says in {path} that it runs; start one with `sfumato serve --json {path}`"
        ) from None


def _signal(pid: int, path: Path) -> None:
    words = Path(f"/proc/{pid}/cmdline")
    try:
        if words.exists() and b"serve" not in words.read_bytes().split(b"\0"):
            raise ProcessLookupError
        os.kill(pid, signal.SIGHUP)
    except (ProcessLookupError, PermissionError):
        raise ConfigError(f"the server of {path} does not run any more, or is another user's; start it again") from None
