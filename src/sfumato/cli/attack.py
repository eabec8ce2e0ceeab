"""`sfumato attack`: redraw a run's inputs from what leaves the device."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sfumato import attacks
from sfumato.attacks import ATTACKS, Leakage
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_plugins, field_texts, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.report.pictures import save_side_by_side
from sfumato.training import load_data, load_run
from sfumato.training.inversion import attack_folder, attack_run

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and attack."""
    parser = CommandParser(
        "attack",
        "Redraw the inputs of a finished run from what leaves the device, and measure how well that works. "
        "A second call resumes an interrupted attack and shows a finished one.",
        "sfumato attack runs/first --attack gan --epochs 50",
    )
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument("--attack", choices=list(ATTACKS), default=next(iter(ATTACKS)), help="which attack")
    parser.add_argument("--data_dir", type=str | None, default=None, help="where the data lies now, if it has moved")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    offered = _add_settings(parser)
    add_plugins(parser)
    parsed = parser.read(words)
    load_plugins(parsed)
    chosen = attacks.config_from_dict(parsed.attack, {name: parsed[name] for name in offered if name in parsed})
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
            victim, sets, chosen, device=device_of(parsed.device), progress=progress, redrawing=bar.at
        )
    picture = attack_folder(victim, parsed.attack) / "reconstructions.png"
    save_side_by_side(picture, attacked.test.originals, {"redrawn": attacked.test.redrawn})
    _show(f"{victim.folder}, {parsed.attack} attack", attacked.result)
    say(f"originals beside redrawn images: {picture}")
    save_json(parsed.json, attacked.result)


def _add_settings(parser: CommandParser) -> list[str]:
    """Offer the settings of all attacks, none of them set: what is not given takes the chosen attack's default."""
    owners: dict[str, list[str]] = {}
    for attack, entry in ATTACKS.items():
        for field in fields(entry.config):
            owners.setdefault(field.name, []).append(attack)
    for name, attack_names in owners.items():
        first = ATTACKS[attack_names[0]].config
        field = first.__dataclass_fields__[name]
        defaults = {attack: ATTACKS[attack].config.__dataclass_fields__[name].default for attack in attack_names}
        same = len(attack_names) == len(ATTACKS) and len(set(defaults.values())) == 1
        shown = field.default if same else ", ".join(f"{attack} {value}" for attack, value in defaults.items())
        text = f"{field_texts(first)[name].rstrip('.')} (default: {shown})"
        parser.add_argument(f"--{name}", type=field.type, default=argparse.SUPPRESS, help=text)
    return list(owners)


def _show(title: str, result: dict[str, Any]) -> None:
    rows = [
        (name, f"{part['mse']:.5f}", f"{part['psnr']:.2f}", f"{part['ssim']:.3f}")
        for name, part in (("training images", result["train"]), ("test images", result["test"]))
    ]
    rows.append(("answering with the mean image", f"{result['mean_image_mse']:.5f}", "", ""))
    table(
        f"{title}: victim's test accuracy {result['victim_accuracy']:.2%}", ("attack on", "MSE", "PSNR", "SSIM"), rows
    )
    if result.get("leakage"):  # attacks of earlier versions did not measure it
        say(Leakage(**result["leakage"]).sentence)
    outcome = result["outcome"]
    say(
        ("converged: " if outcome["converged"] else "NOT CONVERGED, the errors above are no evidence of safety: ")
        + outcome["reason"]
    )
    if result["caveat"]:
        say(result["caveat"])
