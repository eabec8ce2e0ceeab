"""`sfumato demo`: the main job on the embedded handwritten digits, attacked and explained."""

import shlex
from pathlib import Path
from typing import Any

from sfumato.attacks import suite_verdict
from sfumato.cli.console import Bar, progress_bar, say, table
from sfumato.cli.parser import Parsed, save_json
from sfumato.experiments.demo import run_demo
from sfumato.experiments.study import run_study
from sfumato.report.demo import demo_table, write_demo_report
from sfumato.report.study import study_markdown, write_study_report
from sfumato.report.verdict import demo_verdict

__all__ = ["run"]


def run(parsed: Parsed) -> None:
    """Run the demo and show it."""
    folder = Path(parsed.run)
    if parsed.thorough:
        _thorough(folder, parsed.json)
    else:
        _short(folder, parsed.json)


def _short(folder: Path, json_path: str | None) -> None:
    with progress_bar("train and attack") as bar:
        result, originals, reconstructed = run_demo(folder, done=_teller(bar))
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
    save_json(json_path, result)


def _thorough(folder: Path, json_path: str | None) -> None:
    with progress_bar("folds") as bar:
        study = run_study(folder, done=_teller(bar))
    write_study_report(folder / "study.html", study)
    say(study_markdown(study))
    say(f"Report: {folder / 'study.html'}")
    save_json(json_path, study)


def _teller(bar: Bar) -> Any:
    def tell(done: int, total: int, line: dict[str, Any]) -> None:
        bar.at(done, total)
        lam = f", lambda {line['lam']:g}" if line["lam"] else ""
        bar.line(
            f"{done}/{total}  {line['defense']} (sigma {line['noise_std']:g}{lam}, seed {line['seed']}): "
            f"accuracy {line['accuracy']:.1%}, test error {line['mse_test']:.4f} ({line['strongest']}), "
            f"identified {line['identified']:.1%}"
        )

    return tell
