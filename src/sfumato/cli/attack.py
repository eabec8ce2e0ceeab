"""`sfumato attack`: redraw a run's inputs from what leaves the device."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.attacks import DecoderConfig
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_settings, save_json, settings
from sfumato.compute import device_of
from sfumato.report.pictures import save_side_by_side
from sfumato.training import load_data, load_run
from sfumato.training.inversion import attack_run

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and attack."""
    parser = CommandParser(
        "attack",
        "Train a network to redraw the inputs of a finished run, and measure how well it does. "
        "A second call resumes an interrupted attack.",
        "sfumato attack runs/first --epochs 50",
    )
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now, if it has moved")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    add_settings(parser, DecoderConfig)
    parsed = parser.read(words)
    victim = load_run(Path(parsed.run))
    config = victim.config if parsed.data_dir is None else replace(victim.config, data_dir=parsed.data_dir)
    with progress_bar(f"read {config.data}") as bar:
        sets = load_data(config, bar.at)
    with progress_bar("attack") as bar:

        def progress(done: int, total: int, figures: dict[str, float]) -> None:
            bar.at(done, total)
            bar.line(
                f"epoch {done}/{total}  error {figures['mse']:.5f}  on held-out images {figures['held_out_mse']:.5f}"
            )

        attacked = attack_run(
            victim, sets, settings(parsed, DecoderConfig), device=device_of(parsed.device), progress=progress
        )
    result = attacked.result
    picture = victim.folder / "attack" / "reconstructions.png"
    save_side_by_side(picture, attacked.test.originals, {"redrawn": attacked.test.redrawn})
    rows = [
        (name, f"{part['mse']:.5f}", f"{part['psnr']:.2f}", f"{part['ssim']:.3f}")
        for name, part in (("training images", result["train"]), ("test images", result["test"]))
    ]
    rows.append(("answering with the mean image", f"{result['mean_image_mse']:.5f}", "", ""))
    table(
        f"{victim.folder}: victim's test accuracy {result['victim_accuracy']:.2%}",
        ("attack on", "MSE", "PSNR", "SSIM"),
        rows,
    )
    outcome = result["outcome"]
    say(
        ("converged: " if outcome["converged"] else "NOT CONVERGED, the errors above are no evidence of safety: ")
        + outcome["reason"]
    )
    if result["caveat"]:
        say(result["caveat"])
    say(f"originals beside redrawn images: {picture}")
    save_json(parsed.json, result)
