"""`sfumato train`: train a split model in a run folder."""

import shlex
from pathlib import Path
from typing import Any

from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import Parsed, given, load_plugins, save_json
from sfumato.cli.stopping import until_stopped
from sfumato.data import DataSets
from sfumato.defenses import expand
from sfumato.distributed import Ranks, joined, launched
from sfumato.integrations import TensorBoard
from sfumato.training import TrainConfig, load_data, train_run


def settled(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, with the line of the defence written out and the data's folder as a whole path."""
    values = expand(values)
    folder = Path(values.get("data_dir") or "").expanduser()
    if values.get("data_dir") and (values.get("data") != "hub" or folder.exists()):  # a name on a hub is no path
        values["data_dir"] = str(folder.resolve())
    return values


def run(parsed: Parsed) -> None:
    """Train, or resume."""
    load_plugins(parsed)
    asked = settled(given(parsed, TrainConfig))
    if parsed.as_printed:
        asked = TrainConfig.printed(asked)
    config = TrainConfig(**asked) if parsed.run is None else TrainConfig.of_run(Path(parsed.run), asked)
    folder = Path(parsed.run or f"runs/{config.data}-{config.network}-{config.line.compact}-{config.digest()}")
    with joined(config.device) as ranks:
        sets = _read(config, ranks)
        if ranks.is_first:
            say(sets.summary())
        board = TensorBoard(folder / "tensorboard") if parsed.tensorboard and ranks.is_first else None
        with progress_bar("train", shown=ranks.is_first) as bar, until_stopped(catch=launched()) as stopped:
            result = train_run(
                config,
                folder,
                sets=sets,
                on_step=bar.at,
                on_epoch=lambda line: _tell(bar.line, line, config.epochs, board),
                should_stop=stopped,
            )
    if ranks.is_first:
        _show(result, folder, config)
        save_json(parsed.json, result)


def _read(config: TrainConfig, ranks: Ranks) -> DataSets:
    """The images; on every machine one rank reads them first, the others then find what it has prepared."""
    found: list[DataSets] = []
    for turn in (True, False):
        with ranks.together():
            if ranks.leads_machine == turn:
                with progress_bar(f"read {config.data}", shown=ranks.is_first) as bar:
                    found.append(load_data(config, bar.at))
    return found[0]


def _show(result: dict[str, Any], folder: Path, config: TrainConfig) -> None:
    rows = [("defence", str(config.line)), ("accuracy, test", f"{result['accuracy']:.2%}")]
    if result["accuracy_held_out"] is not None:
        rows.append(("accuracy, validation set", f"{result['accuracy_held_out']:.2%}"))
    if result["information"] is not None:
        error = result["information_bounds"]["standard_error"]
        rows.append(("information, test images, held out", f"{result['information']:.1f} ± {error:.1f} nats"))
    rows.append(("seconds", f"{result['seconds']:.1f}"))
    table(str(folder), ("measured", "value"), rows)
    if result["caveat"]:
        say(result["caveat"])
    say(f"next: sfumato attack {shlex.quote(str(folder))}")


def _tell(print_line: Any, line: dict[str, Any], epochs: int, board: TensorBoard | None) -> None:
    if board is not None:
        board.write(line)
    text = f"epoch {line['epoch'] + 1}/{epochs}  loss {line['loss']:.3f}  accuracy {line['accuracy_train']:.1%}"
    if "accuracy_held_out" in line:
        text += f"  validation {line['accuracy_held_out']:.1%}"
    if (information := line.get("information")) is not None:
        text += f"  information {information:.0f} nats held out"
    elif (information := line.get("cem_information")) is not None:
        text += f"  in-sample information {information:.0f} nats"
    if "ridge_share" in line:
        text += f"  ridge attacker's error {line['ridge_share']:.0%} of a guess's"
    print_line(f"{text}  {line['seconds']:.1f} s")
