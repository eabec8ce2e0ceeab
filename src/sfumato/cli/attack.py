"""`sfumato attack`: reconstruct a run's inputs from what leaves the device."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sfumato import attacks
from sfumato.attacks import ATTACKS, measure_leakage
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_plugins, field_texts, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.report.pictures import save_side_by_side
from sfumato.training import load_data, load_run
from sfumato.training.inversion import Suite, attack_folder, attack_suite

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and attack."""
    parser = CommandParser(
        "attack",
        "Reconstruct the inputs of a finished run from what leaves the device, and measure how well that works. The "
        "attacks in closed form (ridge, nearest) run beside the chosen one; the strongest comes first. A second call "
        "resumes an interrupted attack and shows a finished one.",
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

        def progress(name: str, done: int, total: int, figures: dict[str, float]) -> None:
            bar.at(done, total)
            if total > 1:
                bar.line(
                    f"{name}: epoch {done}/{total}  error {figures['mse']:.5f}  on held-out images "
                    f"{figures['held_out_mse']:.5f}"
                )

        suite = attack_suite(
            victim, sets, [chosen], device=device_of(parsed.device), progress=progress, reconstructing=bar.at
        )
    leakage = measure_leakage(victim.model, sets.test, seed=chosen.seed).as_dict()
    picture = attack_folder(victim, parsed.attack) / "reconstructions.png"
    by_error = sorted(suite.attacks, key=lambda name: suite.attacks[name].result["test"]["mse"])
    rows = {f"{name} attack": suite.attacks[name].test.images for name in by_error if _on_all(suite, name)}
    save_side_by_side(picture, suite.attacks[suite.strongest].originals, rows)
    _show(f"{victim.folder}", suite, by_error)
    _show_leakage(leakage)
    say(f"originals beside reconstructions: {picture}")
    save_json(
        parsed.json,
        suite.attacks[parsed.attack].result
        | {"strongest": suite.strongest, "attacks": suite.figures(), "leakage": leakage},
    )


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


def _show_leakage(leakage: Mapping[str, Any]) -> None:
    count, share, error = (leakage[name] for name in ("candidates", "identified", "identified_error"))
    say(f"identified, which of {count} test images it was: {share:.1%} ± {error:.1%}")
    if leakage["information"] is not None:
        say(f"information, held out: {leakage['information']:.1f} ± {leakage['information_error']:.1f} nats")
    for name, words in (
        ("identified_at_most", "from the information"),
        ("clipped_at_most", "from the clip, per input"),
    ):
        if leakage[name] is not None:
            say(f"certificate {words}: no attack identifies more than {leakage[name]:.1%}")


def _on_all(suite: Suite, name: str) -> bool:
    """Whether an attack shows the same images as the strongest; a search image by image affords only some."""
    ours, theirs = (suite.attacks[one].originals for one in (name, suite.strongest))
    return ours.shape == theirs.shape and bool((ours == theirs).all())


def _show(title: str, suite: Suite, by_error: Sequence[str]) -> None:
    rows = [
        (
            f"{name} attack on {words}" + " (strongest)" * (name == suite.strongest and part == "test"),
            f"{figures[part]['mse']:.5f}",
            f"{figures[part]['psnr']:.2f}",
            f"{figures[part]['ssim']:.3f}",
        )
        for name in by_error
        for figures in (suite.attacks[name].result,)
        for part, words in (("test", "test images"), ("train", "training images"))
    ]
    result = suite.attacks[suite.strongest].result
    rows.append(("answering with the mean image", f"{result['mean_image_mse']:.5f}", "", ""))
    table(f"{title}: victim's test accuracy {result['victim_accuracy']:.2%}", ("attack", "MSE", "PSNR", "SSIM"), rows)
    for name, verdict in suite.verdicts.items():
        if verdict.converged:
            say(f"{name} converged: {verdict.reason}")
        elif verdict.converged is None:
            say(f"{name}: {verdict.reason}; its error is no evidence of safety")
        else:
            say(f"{name} has NOT CONVERGED, its error is no evidence of safety: {verdict.reason}")
    if result["caveat"]:
        say(result["caveat"])
