"""The command line: one thin file per command, loaded only when called.

Exit codes, the same for every command: 0 fine; 1 what the command gates is so (a `--fail-if` holds, no setting meets
the floor); 2 a mistake in the input; 3 not judged, or failed inside; 130 interrupted.
"""

import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module

from sfumato import __version__
from sfumato.cli.commands import COMMANDS, parser_of
from sfumato.cores import sleep_while_waiting
from sfumato.distributed import launched, may_tell
from sfumato.errors import ConfigError, NotJudgedError, RankLost, SfumatoError, SfumatoWarning, nearest

# Commands that several processes, started by torchrun, work on together.
TOGETHER = {"train"}

_USAGE = """usage: sfumato COMMAND [options]

Split inference with features that are harder to reconstruct.

commands:
{commands}

Start with `sfumato demo`. Each command explains itself: `sfumato train --help`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code, see above."""
    began = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        print(__version__)
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        print(
            f"sfumato: error: unknown command {command!r}{nearest(command, COMMANDS)}; choose one of "
            f"{', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn  # type: ignore[assignment]
            if launched() and command not in TOGETHER:
                raise ConfigError(f"{command} runs in one process; start it without torchrun")
            parsed = parser_of(command).read(rest)  # before anything heavy is loaded
            parsed.began = began  # loading takes time, too
            sleep_while_waiting()
            code: int | None = import_module(f"sfumato.cli.{command}").run(parsed)
    except SfumatoError as error:
        if may_tell():
            print(f"sfumato: error: {error}", file=sys.stderr, flush=True)
        return 3 if isinstance(error, NotJudgedError | RankLost) else 2
    except KeyboardInterrupt:
        if may_tell():
            print("\nsfumato: interrupted; the same command resumes where it stopped", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:  # ours, a library's, or that of code which the user handed in
        if may_tell():
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"sfumato: error: {command} failed inside ({reason}); {_traceback()}", file=sys.stderr, flush=True)
        return 3
    return code or 0


def _traceback() -> str:
    """Where the traceback of the error at hand lies; where no file can be written, the traceback itself."""
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="sfumato-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return f"its traceback:\n{text}"
    return f"the traceback is in {file.name}, please send it with a report"


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Our own warnings as one sentence; those of libraries are for their developers."""
    if issubclass(category, SfumatoWarning) and _is_first():
        print(f"sfumato: warning: {message}", file=sys.stderr)


def _is_first() -> bool:
    if not launched():
        return True
    from sfumato.distributed import Ranks  # loads torch

    return Ranks.current().is_first


def _usage() -> str:
    width = max(map(len, COMMANDS))
    return _USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


if __name__ == "__main__":
    sys.exit(main())
