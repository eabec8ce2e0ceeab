"""`sfumato tune`: the defence, noise and lambda that protect most and cost no more accuracy than allowed."""

from functools import partial
from pathlib import Path
from typing import Any

from sfumato.cli.console import Bar, progress_bar, say, show
from sfumato.cli.parser import Parsed, given, load_plugins, save_json
from sfumato.cli.train import settled
from sfumato.errors import ConfigError
from sfumato.report.tune import tune_table, write_tune_report
from sfumato.studies import Floor, Setting, Space, tune
from sfumato.training import TrainConfig, load_data

_SEARCHED = {"noise_std", "cem", "lam"}


def run(parsed: Parsed) -> int:
    """Search, show; 1 where no setting is known to meet the floor."""
    lose, least = parsed.lose_at_most, parsed.accuracy_at_least
    floor = Floor(1.0 if lose is None and least is None else lose, least)
    space = Space(**given(parsed, Space))
    load_plugins(parsed)
    asked = settled(given(parsed, TrainConfig))
    if named := sorted(_SEARCHED & set(asked)):
        raise ConfigError(f"the search chooses {', '.join(named)} itself; leave cem and noise out of --defense")
    config = TrainConfig(**asked)
    folder = Path(parsed.run or f"runs/tune-{config.data}-{config.network}-{config.digest()}")
    with progress_bar(f"read {config.data}") as bar:
        load_data(config, bar.at)
    with progress_bar("trainings") as bar:
        result = tune(
            config,
            floor,
            folder,
            space=space,
            trainings=parsed.trainings,
            minutes=parsed.minutes,
            workers=parsed.workers,
            plugins=parsed.plugin or [],
            progress=partial(_tell, bar),
        )
    write_tune_report(folder / "report.html", result)
    _show(result)
    say(f"Report: {folder / 'report.html'}  Figures: {folder / 'tune.json'}")
    save_json(parsed.json, result)
    return 0 if result["chosen"] is not None else 1


def _show(result: dict[str, Any]) -> None:
    title = f"held-out images, {result['trainings']} trainings of {result['grid_trainings']} on the whole grid"
    if result["curve"] or result["baseline"] is not None:
        show(tune_table(result), title)
    say(result["headline"])
    for note in result["notes"]:
        say(note)
    if "command" in result:
        say(f"Train it: {result['command']}")


def _tell(bar: Bar, done: float, total: int, record: dict[str, Any] | None) -> None:
    bar.at(done, total)
    if record is not None:
        right = sum(map(int, record["right"])) / (record["draws"] * len(record["right"]))
        bar.line(
            f"{done:.0f}  {Setting.of(record).describe()}, fold {record['fold'] + 1}: accuracy {right:.1%}, attacker's "
            f"error {record['error_confirming']:.4f}  {record['seconds']:.1f} s"
        )
