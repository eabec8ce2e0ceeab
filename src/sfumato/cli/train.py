"""`sfumato train`: train a split model in a run folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_plugins, add_settings, given, load_plugins, save_json, settings
from sfumato.cli.stopping import until_stopped
from sfumato.data import DataSets
from sfumato.integrations import TensorBoard
from sfumato.ranks import Ranks, joined, launched
from sfumato.training import TrainConfig, load_data, train_run

__all__ = ["run"]


def run(words: Sequence[str]) -> None:
    """Parse and train."""
    parser = CommandParser(
        "train",
        "Train a split model. A second call with the same folder resumes an interrupted training. Started by torchrun, "
        "the processes train one model together.",
        "sfumato train --data cifar10 --data-dir ~/cifar10 --cem --epochs 30 --run runs/first",
    )
    parser.add_argument(
        "--run", type=str | None, default=None, help="run folder; a name is made up where none is given"
    )
    parser.add_argument(
        "--as_printed", action="store_true", help="train with CEM as Algorithm 1 of the paper prints it"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write event files to RUN/tensorboard")
    add_settings(parser, TrainConfig)
    add_plugins(parser)
    parsed = parser.read(words)
    load_plugins(parsed)
    config: TrainConfig = (
        TrainConfig.as_printed(**given(parser.given(words), TrainConfig))
        if parsed.as_printed
        else settings(parsed, TrainConfig)
    )
    # A name on a hub is no path.
    if config.data_dir is not None and (config.data != "hub" or Path(config.data_dir).expanduser().exists()):
        config = replace(config, data_dir=str(Path(config.data_dir).expanduser().resolve()))
    folder = Path(parsed.run or f"runs/{config.data}-{config.network}-{config.digest()}")
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
        _show(result, folder)
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


def _show(result: dict[str, Any], folder: Path) -> None:
    rows = [("accuracy, test", f"{result['accuracy']:.2%}")]
    if result["accuracy_held_out"] is not None:
        rows.append(("accuracy, held-out part of the training set", f"{result['accuracy_held_out']:.2%}"))
    if result["information"] is not None:
        error = result["information_bounds"]["standard_error"]
        rows.append(("information, test images, held out", f"{result['information']:.1f} ± {error:.1f} nats"))
    rows.append(("seconds", f"{result['seconds']:.1f}"))
    table(str(folder), ("measured", "value"), rows)
    if result["caveat"]:
        say(result["caveat"])
    say(f"next: sfumato attack {folder}")


def _tell(print_line: Any, line: dict[str, Any], epochs: int, board: TensorBoard | None) -> None:
    if board is not None:
        board.write(line)
    text = f"epoch {line['epoch'] + 1}/{epochs}  loss {line['loss']:.3f}  accuracy {line['accuracy_train']:.1%}"
    if "accuracy_held_out" in line:
        text += f"  held out {line['accuracy_held_out']:.1%}"
    if (information := line.get("information")) is not None:
        text += f"  information {information:.0f} nats held out"
    elif (information := line.get("cem_information")) is not None:
        text += f"  in-sample information {information:.0f} nats"
    if "ridge_share" in line:
        text += f"  ridge attacker's error {line['ridge_share']:.0%} of a guess's"
    print_line(f"{text}  {line['seconds']:.1f} s")
