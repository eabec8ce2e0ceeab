"""`sfumato train`: train a split model in a run folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.console import progress_bar, say, table
from sfumato.cli.parser import CommandParser, add_plugins, add_settings, given, load_plugins, save_json

if TYPE_CHECKING:
    from sfumato.data import DataSets
    from sfumato.ranks import Ranks
    from sfumato.training import TrainConfig
    from sfumato.watch import TensorBoard

__all__ = ["add_train_settings", "parser", "run", "settled"]

_CONFIG = "sfumato.training.config:TrainConfig"
_SECTIONS = {
    "data": "data data_dir size limit test_limit hold_out augment rotation",
    "network": "model cut bottleneck width bound",
    "defence": "defense cem lam noise_std",
    "parts of --defense, one by one": "clip_norm quantize_bits lam_schedule covariance clusters_per_class "
    "scaling update fit refresh_every",
    "training": "epochs batch_size lr lr_schedule momentum weight_decay seed",
    "machine": "device precision engine micro_batch checkpoint_seconds watch",
}


def parser() -> CommandParser:
    """What `sfumato train` understands."""
    made = CommandParser(
        "train",
        "Train a split model. Called again with the same folder, it resumes that run with its stored settings. Started "
        "by torchrun, the processes train one model together.",
        'sfumato train --data digits --defense "cem(0.3) + noise(0.1)" --epochs 30 --run runs/first',
    )
    made.add_argument("--run", type=str, help="Folder of the run; a name is made up if none is given.")
    made.add_argument("--as_printed", action="store_true", help="Train with CEM as Algorithm 1 of the paper prints it.")
    made.add_argument("--tensorboard", action="store_true", help="Also write event files to RUN/tensorboard.")
    add_plugins(made)
    add_train_settings(made)
    return made


def add_train_settings(made: CommandParser, *, skip: set[str] | None = None, names_only: bool = False) -> None:
    """Offer the settings of a training, in sections."""
    for title, names in _SECTIONS.items():
        made.section(title, names_only=names_only or title.startswith("parts"))
        add_settings(made, _CONFIG, only=names.split(), skip=skip)


def settled(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, with the line of the defence written out and the data's folder as a whole path."""
    from sfumato.defenses import expand

    values = expand(values)
    folder = Path(values.get("data_dir") or "").expanduser()
    if values.get("data_dir") and (values.get("data") != "hub" or folder.exists()):  # a name on a hub is no path
        values["data_dir"] = str(folder.resolve())
    return values


def run(words: Sequence[str]) -> None:
    """Parse and train."""
    parsed = parser().read(words)
    from sfumato.cli.stopping import until_stopped
    from sfumato.ranks import joined, launched
    from sfumato.training import TrainConfig, train_run
    from sfumato.watch import TensorBoard

    load_plugins(parsed)
    asked = settled(given(parsed, TrainConfig))
    folder = None if parsed.run is None else Path(parsed.run)
    stored = None if folder is None else TrainConfig.of_run(folder, asked)
    if stored is None or parsed.as_printed:
        stored = TrainConfig.as_printed(**asked) if parsed.as_printed else TrainConfig(**asked)
    config = stored
    folder = folder or Path(f"runs/{config.data}-{config.network}-{config.digest()}")
    with joined(config.device) as ranks:
        sets = _read(config, ranks)
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


def _read(config: "TrainConfig", ranks: "Ranks") -> "DataSets":
    """The images; on every machine one rank reads them first, the others then find what it has prepared."""
    from sfumato.training import load_data

    found = []
    for turn in (True, False):
        with ranks.together():
            if ranks.leads_machine == turn:
                with progress_bar(f"read {config.data}", shown=ranks.is_first) as bar:
                    found.append(load_data(config, bar.at))
    return found[0]


def _show(result: dict[str, Any], folder: Path, config: "TrainConfig") -> None:
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


def _tell(print_line: Any, line: dict[str, Any], epochs: int, board: "TensorBoard | None") -> None:
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
