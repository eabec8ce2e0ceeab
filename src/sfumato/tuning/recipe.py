"""From the setting that was found to a training of its own: as a command line and as a YAML file."""

import json
import shlex
from dataclasses import MISSING, fields
from typing import Any

from sfumato.defenses.notation import SETTINGS
from sfumato.training import TrainConfig

__all__ = ["train_command", "train_yaml"]


def train_command(config: TrainConfig, run: str, plugins: tuple[str, ...] = ()) -> str:
    """The `sfumato train` line that trains `config` in the folder `run`; what has its default is left out."""
    words = ["sfumato", "train"]
    for name, value in _changed(config).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{name.replace('_', '-')}")
        else:
            words += [option, str(value)]
    if plugins:
        words += ["--plugin", *plugins]
    return shlex.join([*words, "--run", run])


def train_yaml(config: TrainConfig) -> str:
    """The same as a file for `sfumato train --config FILE`."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in _changed(config).items())


def _changed(config: TrainConfig) -> dict[str, Any]:
    found = {} if config.line == TrainConfig().line else {"defense": str(config.line)}
    for field in fields(TrainConfig):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if (value := getattr(config, field.name)) != default and field.name not in SETTINGS:
            found[field.name] = value
    return found
