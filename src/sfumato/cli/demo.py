"""`sfumato demo`: the main job on the embedded handwritten digits, attacked and explained."""

import shlex
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.attacks import suite_verdict
from sfumato.cli.console import Bar, progress_bar, say, table
from sfumato.cli.parser import Parsed, save_json
from sfumato.report.demo import demo_table, write_demo_report
from sfumato.report.verdict import demo_verdict
from sfumato.studies.demo import run_demo


def run(parsed: Parsed) -> None:
    """Run the demo and show it."""
    folder = Path(parsed.run)
    with progress_bar("train and attack") as bar:
        result, originals, reconstructed = run_demo(folder, report=partial(_tell, bar))
    write_demo_report(folder / "report.html", result, originals, reconstructed)
    heads, lines = demo_table(result["rows"])
    table(f"{result['test_images']} unseen digits, mean ± standard deviation over seeds", heads, lines)
    verdict = demo_verdict(
        result["equal_accuracy"], [suite_verdict(row) for row in result["rows"]], images=result["test_images"]
    )
    for sentence in (verdict.headline, *verdict.notes):
        say(sentence)
    say(f"{result['seconds']:.0f} s. Report: {folder / 'report.html'}")
    say(f"next: sfumato audit {shlex.quote(str(folder / 'models' / 'noise+cem-s0'))} --minutes 2")
    save_json(parsed.json, result)


def _tell(bar: Bar, done: float, total: int, line: dict[str, Any] | None) -> None:
    bar.at(done, total)
    if line is not None and "error" not in line:
        defense = line["row"] + ("+cem" if line["cem"] else "")
        lam = f", lambda {line['lam']:g}" if line["lam"] else ""
        strongest = line["strongest"]
        bar.line(
            f"{done:.0f}/{total}  {defense} (sigma {line['noise_std']:g}{lam}, seed {line['seed']}): accuracy "
            f"{line['accuracy']:.1%}, test error {line['attacks'][strongest]['test']['mse']:.4f} ({strongest}), "
            f"identified {line['leakage']['identified']:.1%}"
        )
