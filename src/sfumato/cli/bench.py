"""`sfumato bench`: speed as ratios to baselines measured in the same run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.bench import Row, run_bench
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, save_json
from sfumato.errors import ConfigError

__all__ = ["run"]

_ROWS = {"training": 25, "serving": 13}  # for the progress bar


def run(words: Sequence[str]) -> None:
    """Parse and measure."""
    parser = CommandParser(
        "bench",
        "Measure speed as ratios to baselines that run side by side with ours. Leave the machine alone meanwhile.",
        "sfumato bench serving --json results/bench-serving.json",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=list(_ROWS),
        default="training",
        help="training, attacks and mixtures; or the device's side and the server",
    )
    parser.add_argument("--rounds", type=int | None, default=None, help="how often each variant runs; 15, serving 9")
    parser.add_argument("--seconds", type=float, default=2.0, help="serving: of one run of one variant")
    parser.add_argument(
        "--kserve",
        type=str | None,
        default=None,
        metavar="PYTHON",
        help="serving: a Python with kserve to compare with",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it works, says nothing about speed"
    )
    parsed = parser.read(words)
    if parsed.rounds is not None and parsed.rounds < 2:
        raise ConfigError(f"rounds is {parsed.rounds}; a median needs at least 2")
    if not 0 < parsed.seconds < float("inf"):
        raise ConfigError(f"seconds is {parsed.seconds}; give a finite number above 0")
    with progress_bar(f"bench {parsed.what}") as bar:
        done: list[Row] = []

        def tell(row: Row) -> None:
            done.append(row)
            bar.at(len(done), _ROWS[parsed.what])
            bar.line(f"{row.name}: {row.ratio:.3f} x {row.baseline} ({row.detail})")

        result = _measure(parsed, tell)
    table("speed", ("what", "ratio", "over", "target"), [_cells(row) for row in done])
    if parsed.quick:
        say("quick run: these figures say nothing about speed.")
    save_json(parsed.json, result)


def _measure(parsed: Any, tell: Any) -> dict[str, Any]:
    if parsed.what == "training":
        return run_bench(rounds=parsed.rounds or 15, quick=parsed.quick, tell=tell)
    from sfumato.bench.serving import run_serving_bench

    python = None if parsed.kserve is None else Path(parsed.kserve)
    if python is not None and not python.exists():
        raise ConfigError(f"there is no Python {python}; give the one of an environment that has kserve")
    return run_serving_bench(
        rounds=parsed.rounds or 9, seconds=parsed.seconds, quick=parsed.quick, kserve_python=python, tell=tell
    )


def _cells(row: Row) -> tuple[str, str, str, str]:
    target = "" if row.target is None else f"{row.better} {row.target:g}: {'met' if row.met else 'MISSED'}"
    return row.name, f"{row.ratio:.3f}", row.baseline, target
