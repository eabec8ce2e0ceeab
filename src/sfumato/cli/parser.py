"""One parser for all commands: settings come from a dataclass, a YAML file and the command line, in that order."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from sfumato.files import write_json
from sfumato.ranks import may_tell

__all__ = [
    "CommandParser",
    "add_plugins",
    "add_settings",
    "field_texts",
    "given",
    "load_plugins",
    "save_json",
    "settings",
]


class CommandParser(ArgumentParser):
    """jsonargparse with dashes in option names (`--data-dir`), an example in the help and `--json`."""

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(prog=f"sfumato {command}", description=f"{description}\n\nexample:\n  {example}")
        self.add_argument("--config", action="config", help="YAML file with settings; options override it")
        self.add_argument(
            "--json", type=str | None, default=None, metavar="PATH", help="write the figures there as JSON"
        )

    def read(self, words: Sequence[str]) -> Namespace:
        """Parse, taking `--data-dir` and `--data_dir` alike."""
        return self.parse_args([_underscored(word) for word in words])

    def given(self, words: Sequence[str]) -> Namespace:
        """Only what the command line and a file of settings say, without defaults."""
        return self.parse_args([_underscored(word) for word in words], defaults=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and exit with 2; of several processes only one says it."""
        if not may_tell():
            self.exit(2)
        super().error(message, ex)

    def format_help(self, formatter: Any = None) -> str:
        """Help with dashes."""
        text = super().format_help(formatter)
        return re.sub(r"--(?:no_)?[a-z][a-z_]*", lambda match: match[0].replace("_", "-"), text)


def add_settings(parser: CommandParser, cls: type, *, skip: set[str] | None = None) -> None:
    """Offer every field of a settings dataclass as an option; booleans as `--name` and `--no-name`."""
    skip = skip or set()
    flags = {field.name for field in fields(cls) if field.type is bool and field.name not in skip}
    texts = field_texts(cls)
    for field in fields(cls):
        if field.name in flags:
            parser.add_argument(
                f"--{field.name}",
                action=ActionYesNo(no_prefix="no_"),
                default=field.default,
                help=texts.get(field.name),
            )
        elif field.name not in skip:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            parser.add_argument(f"--{field.name}", type=field.type, default=default, help=texts.get(field.name))


def add_plugins(parser: CommandParser) -> None:
    """Offer `--plugin`: files that register defences of the user's own."""
    parser.add_argument(
        "--plugin", nargs="+", type=str, default=[], metavar="FILE", help="Python files that register your own defences"
    )


def load_plugins(parsed: Namespace) -> None:
    """Run the files that `--plugin` names.

    Raises:
        ConfigError: a file is missing or registers nothing.
    """
    if not parsed.plugin:
        return
    from sfumato import defenses  # loads torch, which the commands of device and server do without

    for plugin in parsed.plugin:
        defenses.load_plugin(plugin)


def settings(parsed: Namespace, cls: type) -> Any:
    """The settings dataclass from what was parsed."""
    return cls(**given(parsed, cls))


def given(parsed: Namespace, cls: type) -> dict[str, Any]:
    """The values that were parsed for the fields of a settings dataclass."""
    return {field.name: parsed[field.name] for field in fields(cls) if field.name in parsed}


def save_json(path: str | None, value: Any) -> None:
    """Write the figures where `--json` says."""
    if path is not None:
        write_json(Path(path), value)


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def field_texts(cls: type) -> dict[str, str]:
    """Help texts from the `Attributes:` section of the docstring, so that they exist once."""
    text = (cls.__doc__ or "").partition("Attributes:")[2]
    return {
        name: " ".join(body.split()) for name, body in re.findall(r"\n {8}(\w+): (.*?)(?=\n {8}\w+:|\Z)", text, re.S)
    }
