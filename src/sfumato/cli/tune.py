"""`sfumato tune`: the defence, noise and lambda that protect most and cost no more accuracy than allowed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sfumato.cli.console import Bar, progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_plugins, add_settings, field_texts, load_plugins, save_json, settings
from sfumato.report.tune import write_tune_report
from sfumato.studies import Limits, Setting, Space, floor_of, tune
from sfumato.training import TrainConfig, load_data

__all__ = ["run"]

_SEARCHED = {"noise_std", "cem", "lam"}
_SPACE = {
    "noise_stds": float,
    "lams": float,
    "defenses": str,
    "folds": int,
    "baselines": int,
    "draws": int,
    "confidence": float,
    "attack": Literal["ridge", "decoder"],
}


def run(words: Sequence[str]) -> int:
    """Parse, search, show; 1 where no setting is known to meet the floor."""
    parser = CommandParser(
        "tune",
        "Find the defence, noise and lambda that protect most and meet a floor under the accuracy, on images held out "
        "of the training set; the test set is never read. Every training is kept: interrupted, the same command "
        "resumes it. Exit code 1 where no setting is known to meet the floor.",
        "sfumato tune --data digits --epochs 20 --lose-at-most 1 --run runs/tune",
    )
    parser.add_argument("--run", type=str | None, default=None, help="folder of the search (default: runs/tune-NAME)")
    parser.add_argument(
        "--lose_at_most",
        type=str | None,
        default=None,
        metavar="POINTS",
        help="floor: points of accuracy against the undefended baseline trained the same way (default: 1)",
    )
    parser.add_argument(
        "--accuracy_at_least", type=str | None, default=None, metavar="SHARE", help="floor: a share such as 0.97"
    )
    texts = field_texts(Space)
    for name, kind in _SPACE.items():
        default = getattr(Space(), name)
        many: dict[str, Any] = {"nargs": "+"} if isinstance(default, tuple) else {}
        parser.add_argument(
            f"--{name}", type=kind, default=list(default) if many else default, help=texts[name], **many
        )
    parser.add_argument("--trainings", type=int | None, default=None, help="at most so many trainings, over all calls")
    parser.add_argument("--minutes", type=float | None, default=None, help="stop cleanly after that time")
    parser.add_argument("--workers", type=int | None, default=None, help="trainings side by side")
    add_settings(parser, TrainConfig, skip=_SEARCHED)
    add_plugins(parser)
    parsed = parser.read(words)
    floor = floor_of(parsed.lose_at_most, parsed.accuracy_at_least)
    limits = Limits(parsed.trainings, parsed.minutes)
    own = {name: parsed[name] for name in _SPACE} | {"seed": parsed.seed}
    space = Space(**own | {name: tuple(own[name]) for name in ("noise_stds", "lams", "defenses")})
    load_plugins(parsed)
    config: TrainConfig = settings(parsed, TrainConfig)
    if config.data_dir is not None and (config.data != "hub" or Path(config.data_dir).expanduser().exists()):
        config = replace(config, data_dir=str(Path(config.data_dir).expanduser().resolve()))
    folder = Path(parsed.run or f"runs/tune-{config.data}-{config.network}-{config.digest()}")
    with progress_bar(f"read {config.data}") as bar:
        load_data(config, bar.at)
    with progress_bar("trainings") as bar:
        result = tune(
            config,
            floor,
            folder,
            space=space,
            limits=limits,
            workers=parsed.workers,
            plugins=parsed.plugin,
            progress=_teller(bar),
        )
    write_tune_report(folder / "report.html", result)
    _show(result)
    say(f"Report: {folder / 'report.html'}  Figures: {folder / 'tune.json'}")
    save_json(parsed.json, result)
    return 0 if result["chosen"] is not None else 1


def _show(result: dict[str, Any]) -> None:
    rows = []
    if (baseline := result["baseline"]) is not None:
        rows.append(("no defence", f"{baseline['accuracy']:.1%}", "", f"{baseline['error']:.4f}", _share(baseline), ""))
    for row in result["curve"]:
        strength = Setting.of(row).describe()
        spread = "" if row["loss_se"] is None else f" ± {100 * row['loss_se']:.1f}"
        rows.append(
            (
                strength,
                f"{row['accuracy']:.1%}",
                f"{100 * row['loss']:+.1f}{spread}",
                f"{row['error']:.4f}",
                _share(row),
                row["verdict"],
            )
        )
    title = f"held-out images, {result['trainings']} trainings of {result['grid_trainings']} on the whole grid"
    table(title, ("strength", "accuracy", "points lost", "strongest attacker's error", "identified", "floor"), rows)
    say(result["headline"])
    for note in result["notes"]:
        say(note)
    if "command" in result:
        say(f"Train it: {result['command']}")


def _share(row: dict[str, Any]) -> str:
    return "–" if row["identified"] is None else f"{row['identified']:.1%}"


def _teller(bar: Bar) -> Any:
    def tell(done: float, total: int, record: dict[str, Any] | None) -> None:
        bar.at(done, total)
        if record is not None:
            strength = Setting.of(record).describe()
            right = sum(map(int, record["right"])) / (record["draws"] * len(record["right"]))
            bar.line(
                f"{done:.0f}  {strength}, fold {record['fold'] + 1}: accuracy {right:.1%}, attacker's error "
                f"{record['error_confirming']:.4f}  {record['seconds']:.1f} s"
            )

    return tell
