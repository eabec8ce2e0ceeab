"""`sfumato demo`: the main job on the embedded handwritten digits, attacked and explained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.cli.console import Bar, progress_bar, say, table
from sfumato.cli.parser import CommandParser, save_json
from sfumato.experiments.demo import run_demo
from sfumato.experiments.study import run_study
from sfumato.report.demo import write_demo_report
from sfumato.report.study import study_markdown, write_study_report

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and show."""
    parser = CommandParser(
        "demo",
        "Train split models on handwritten digits without defence, with noise, and with noise and CEM; attack each; "
        "write a report. Interrupted, it goes on where it stopped.",
        "sfumato demo --run runs/demo",
    )
    parser.add_argument("--run", type=str, default="runs/demo", help="folder of results and report")
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="five folds over all 1,797 digits, CEM against the noise-only curve",
    )
    parsed = parser.read(words)
    folder = Path(parsed.run)
    if parsed.thorough:
        _thorough(folder, parsed.json)
    else:
        _short(folder, parsed.json)


def _short(folder: Path, json_path: str | None) -> None:
    with progress_bar("train and attack") as bar:
        result, originals, redrawn = run_demo(folder, done=_teller(bar))
    write_demo_report(folder / "report.html", result, originals, redrawn)
    rows = [
        (
            entry["defense"],
            f"{entry['accuracy']:.2%} ± {entry['accuracy_sd']:.2%}",
            f"{entry['mse_train']:.4f}",
            f"{entry['mse_test']:.4f} ± {entry['mse_test_sd']:.4f}",
            f"{entry['psnr_test']:.1f}",
            f"{entry['ssim_test']:.3f}",
        )
        for entry in result["summary"]
    ]
    title = f"digits, {len({row['seed'] for row in result['rows']})} seeds, mean ± standard deviation"
    table(title, ("defence", "accuracy", "MSE train", "MSE test", "PSNR test", "SSIM test"), rows)
    gain = result["gain"]
    say(
        f"With the same noise, CEM makes the attacker's error on unseen digits {gain['mse_ratio']:.2f} times as large, "
        f"at {gain['accuracy_difference'] * 100:+.2f} points of accuracy."
    )
    if loose := sum(not row["converged"] for row in result["rows"]):
        say(f"{loose} of {len(result['rows'])} attacks had not converged; the report names them.")
    say(f"{result['seconds']:.0f} s. Report: {folder / 'report.html'}")
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
            f"accuracy {line['accuracy']:.1%}, attacker's test error {line['mse_test']:.4f}"
        )

    return tell
