"""`sfumato bench`: speed as ratios to baselines measured in the same run."""

from collections.abc import Sequence

from sfumato.bench import Row, run_bench
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, save_json
from sfumato.errors import ConfigError

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and measure."""
    parser = CommandParser(
        "bench",
        "Measure speed as ratios to baselines that run side by side with ours. Leave the machine alone meanwhile.",
        "sfumato bench --json bench.json",
    )
    parser.add_argument("--rounds", type=int, default=15, help="how often each variant runs")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it works, says nothing about speed"
    )
    parsed = parser.read(words)
    if parsed.rounds < 2:
        raise ConfigError(f"rounds is {parsed.rounds}; a median needs at least 2")
    with progress_bar("bench") as bar:
        done: list[Row] = []

        def tell(row: Row) -> None:
            done.append(row)
            bar.at(len(done), 25)
            bar.line(f"{row.name}: {row.ratio:.3f} x {row.baseline} ({row.detail})")

        result = run_bench(rounds=parsed.rounds, quick=parsed.quick, tell=tell)
    table("speed", ("what", "ratio", "over", "target"), [_cells(row) for row in done])
    if parsed.quick:
        say("quick run: these figures say nothing about speed.")
    save_json(parsed.json, result)


def _cells(row: Row) -> tuple[str, str, str, str]:
    target = "" if row.target is None else f"{row.better} {row.target:g}: {'met' if row.met else 'MISSED'}"
    return row.name, f"{row.ratio:.3f}", row.baseline, target
