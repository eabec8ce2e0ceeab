"""`sfumato attack`: reconstruct a run's inputs from what leaves the device."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato import attacks
from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import Parsed, load_plugins, save_json
from sfumato.compute import device_of
from sfumato.report.pictures import save_side_by_side
from sfumato.training import load_data, load_run
from sfumato.training.inversion import Suite, attack_folder, attack_suite, stored_settings


def run(parsed: Parsed) -> None:
    """Attack, resume, or show."""
    load_plugins(parsed)
    known = {name for entry in attacks.ATTACKS.values() for name in entry.config.__dataclass_fields__}
    given = {name: value for name, value in vars(parsed).items() if name in known}
    attacks.config_from_dict(parsed.attack, given)
    victim = load_run(Path(parsed.run))
    chosen = attacks.config_from_dict(parsed.attack, stored_settings(victim, parsed.attack) | given)
    config = victim.config if parsed.data_dir is None else replace(victim.config, data_dir=parsed.data_dir)
    with progress_bar(f"read {config.data}") as bar:
        sets = load_data(config, bar.at)
    with progress_bar("attack") as bar:

        def progress(name: str, done: int, total: int, figures: dict[str, float]) -> None:
            bar.at(done, total)
            if total > 1:
                bar.line(
                    f"{name}: epoch {done}/{total}  error {figures['mse']:.5f}  on the validation set "
                    f"{figures['held_out_mse']:.5f}"
                )

        suite = attack_suite(
            victim, sets, [chosen], device=device_of(parsed.device), progress=progress, reconstructing=bar.at
        )
    leakage = attacks.measure_leakage(victim.model, sets.test, seed=chosen.seed).as_dict()
    picture = attack_folder(victim, parsed.attack) / "reconstructions.png"
    by_error = sorted(suite.attacks, key=lambda name: suite.attacks[name].result["test"]["mse"])
    rows = {f"{name} attack": suite.attacks[name].test.images for name in by_error if _on_all(suite, name)}
    save_side_by_side(picture, suite.attacks[suite.strongest].originals, rows)
    _show(f"{victim.folder}, {victim.config.line}", suite, by_error)
    _show_leakage(leakage)
    say(f"originals beside reconstructions: {picture}")
    save_json(
        parsed.json,
        suite.attacks[parsed.attack].result
        | {"strongest": suite.strongest, "attacks": suite.figures(), "leakage": leakage},
    )


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
