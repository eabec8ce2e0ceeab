"""`sfumato bench`: speed as ratios to baselines measured in the same run."""

from typing import Any

from sfumato.bench import Ratio, run_bench
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import Parsed, save_json

_ROWS = {"training": 8, "serving": 9}  # for the progress bar


def run(parsed: Parsed) -> None:
    """Measure and show."""
    with progress_bar(f"bench {parsed.what}") as bar:
        done: list[Ratio] = []

        def tell(row: Ratio) -> None:
            done.append(row)
            bar.at(len(done), _ROWS[parsed.what])
            bar.line(f"{row.name}: {row.ratio:.3f} x {row.baseline} ({row.detail})")

        result = _measure(parsed, tell)
    targets = {None: "", True: "{better} {target:g}: met", False: "{better} {target:g}: MISSED"}
    rows = [
        (row.name, f"{row.ratio:.3f}", row.baseline, targets[row.met].format(better=row.better, target=row.target))
        for row in done
    ]
    table("speed", ("what", "ratio", "over", "target"), rows)
    if parsed.quick:
        say("quick run: these figures say nothing about speed.")
    save_json(parsed.json, result)


def _measure(parsed: Any, tell: Any) -> dict[str, Any]:
    if parsed.what == "training":
        return run_bench(rounds=parsed.rounds or 15, quick=parsed.quick, tell=tell)
    from sfumato.bench.serving import run_serving_bench

    return run_serving_bench(rounds=parsed.rounds or 9, seconds=parsed.seconds, quick=parsed.quick, tell=tell)
