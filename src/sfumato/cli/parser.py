"""One parser for all commands: argparse with whole names only, typed settings, files of settings and a short help."""

import argparse
import json
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from sfumato.cli.fields import SettingField, fields_of
from sfumato.errors import ConfigError, nearest
from sfumato.files import write_json
from sfumato.ranks import may_tell

__all__ = ["CommandParser", "Parsed", "add_plugins", "add_settings", "given", "load_plugins", "save_json", "settings"]

_WIDTH = 118
_COLUMN = 26
_NOT_IN_FILES = {"config", "json", "plugin", "help"}
_METAVARS = {int: "N", float: "X", Path: "PATH"}
_WORDS = {int: "a whole number", float: "a number"}
_Settings = TypeVar("_Settings")


class Parsed(argparse.Namespace):
    """What was parsed; settings that were not given are not in it."""

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where the command has none."""
        return vars(self).get(name, default)


@dataclass
class _Section:
    title: str
    names_only: bool = False
    actions: list[argparse.Action] = field(default_factory=list)


class CommandParser(argparse.ArgumentParser):
    """The options of one command, in sections, with an example, `--config` and `--json`."""

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(prog=f"sfumato {command}", description=description, allow_abbrev=False, add_help=False)
        self.example = example
        self.sections = [_Section("options")]
        self.add_argument("--config", metavar="FILE", help="YAML file with settings; options override it.")
        self.add_argument("--json", metavar="PATH", help="Write the figures there as JSON; - is standard output.")
        self.add_argument("--help", action="help", help="Show this help.")

    def section(self, title: str, *, names_only: bool = False) -> None:
        """Begin a section of the help; with `names_only` it lists the options without their texts."""
        self.sections.append(_Section(title, names_only))

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        """As argparse's, with annotated types (`int | None`, `Literal[...]`) and dashes for underscores."""
        kind = options.get("type")
        names = tuple(name.replace("_", "-") if name.startswith("-") else name for name in names)
        if kind is not None:
            plain = _without_none(kind)
            options["type"] = _reader(kind)
            options.setdefault("metavar", _METAVARS.get(plain, "NAME" if _allowed(kind) else "TEXT"))
        elif "choices" in options:
            choices = tuple(options.pop("choices"))
            kind = Literal[choices]  # type: ignore[valid-type]
            options |= {"type": _reader(kind), "metavar": "NAME"}
        action: argparse.Action = super().add_argument(*names, **options)
        action.allowed = _allowed(kind)  # type: ignore[attr-defined]
        self.sections[-1].actions.append(action)
        return action

    def read(self, words: Sequence[str]) -> Parsed:
        """Parse, taking `--data-dir` and `--data_dir` alike; a mistake ends with a sentence and exit code 2."""
        parsed, rest = self.parse_known_args(self._with_file([_dashed(word) for word in words]), Parsed())
        if rest:
            known = [name for one in self._options().values() for name in one.option_strings]
            self.error(f"unknown option {rest[0]}{nearest(rest[0].partition('=')[0], known)}")
        if parsed.json == "-":
            from sfumato.cli import console

            console.leave_standard_output()
        return parsed

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2; of several processes only one says it."""
        if may_tell():
            message = message.removeprefix("argument ")
            print(f"sfumato: error: {message}; `{self.prog} --help` shows the options", file=sys.stderr, flush=True)
        self.exit(2)

    def format_help(self) -> str:
        """Usage, purpose, example, and a line for every option; the pages have the long texts."""
        width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
        positionals = [one for section in self.sections for one in section.actions if not one.option_strings]
        words = [str(one.metavar or one.dest.upper()) + " ..." * (one.nargs == "+") for one in positionals]
        lines = [f"usage: {' '.join([self.prog, *words])} [options]", ""]
        lines += [*textwrap.wrap(self.description or "", width), "", f"example: {self.example}"]
        for section in self.sections:
            if section.actions:
                lines += ["", f"{section.title}:"]
                if section.names_only:
                    names = "  ".join(_shown(one) for one in section.actions)
                    lines += textwrap.wrap(
                        names, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
                    )
                else:
                    for one in section.actions:
                        lines += _row(one, width)
        return "\n".join(lines) + "\n"

    def _options(self) -> dict[str, argparse.Action]:
        return {one.dest: one for section in self.sections for one in section.actions if one.option_strings}

    def _with_file(self, words: list[str]) -> list[str]:
        """The words, behind those that the file of `--config` stands for."""
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.add_argument("--config")
        path = before.parse_known_args([word for word in words if word != "--help"])[0].config
        return words if path is None else [*self._words_of(Path(path)), *words]

    def _words_of(self, path: Path) -> list[str]:
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {path} ({' '.join(str(error).split())}); give a YAML file") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no settings; write lines such as `epochs: 30`")
        options, words = {name: one for name, one in self._options().items() if name not in _NOT_IN_FILES}, []
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in options:
                why = "cannot be set by a file" if name in _NOT_IN_FILES else f"is no setting{nearest(name, options)}"
                raise ConfigError(f"{key} in {path} {why}; take it out, or see `{self.prog} --help`")
            option = options[name].option_strings[0]
            if isinstance(value, bool):
                words += [option] if value else [one for one in options[name].option_strings if one.startswith("--no-")]
            elif isinstance(value, list):
                words += [option, *map(str, value)]
            elif value is not None:
                words.append(f"{option}={json.dumps(value) if isinstance(value, dict) else value}")
        return words


def add_settings(
    parser: CommandParser, where: str | type, *, skip: set[str] | None = None, only: Sequence[str] | None = None
) -> None:
    """Offer the fields of the settings dataclass `package.module:Class`; booleans as `--name` and `--no-name`.

    Args:
        parser: which gets them; what is not given stays out of what it parses.
        where: the class, or where it is, so that it need not be imported.
        skip: fields to leave out.
        only: fields to take, in this order.
    """
    offered = {
        one.name: one for one in fields_of(where if isinstance(where, str) else f"{where.__module__}:{where.__name__}")
    }
    for name in only if only is not None else offered:
        if name not in (skip or set()):
            add_setting(parser, offered[name])


def add_setting(parser: CommandParser, one: SettingField, default: str | None = None) -> None:
    """Offer one setting; its default is shown, and left to the dataclass."""
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": one.name}
    kind = one.kind
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is tuple:
        options |= {"type": get_args(kind)[0], "nargs": "+"}
    else:
        options["type"] = kind
    usual = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
    usual = "" if usual is None else str(usual).replace("True", "on").replace("False", "off")
    parser.add_argument(f"--{one.name}", help=one.text, **options).usual = usual if default is None else default  # type: ignore[attr-defined]


def add_plugins(parser: CommandParser) -> None:
    """Offer `--plugin`: files that register defences of the user's own."""
    parser.add_argument(
        "--plugin",
        nargs="+",
        type=str,
        default=[],
        metavar="FILE",
        help="Python files that register your own defences.",
    )


def load_plugins(parsed: Parsed) -> None:
    """Run the files that `--plugin` names.

    Raises:
        ConfigError: a file is missing or registers nothing.
    """
    if parsed.plugin:
        from sfumato import defenses  # loads torch, which the commands of device and server do without

        for plugin in parsed.plugin:
            defenses.load_plugin(plugin)


def settings(parsed: Parsed, cls: type[_Settings]) -> _Settings:
    """The settings dataclass from what was given."""
    return cls(**given(parsed, cls))


def given(parsed: Parsed, cls: type) -> dict[str, Any]:
    """What was given of the fields of a settings dataclass."""
    return {name: parsed[name] for name in cls.__dataclass_fields__ if name in parsed}  # type: ignore[attr-defined]


def save_json(path: str | None, value: Any) -> None:
    """Write the figures where `--json` says."""
    if path == "-":
        print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
    elif path is not None:
        write_json(Path(path), value)


def first_sentence(text: str) -> str:
    """What the short help says of a longer text.

    >>> first_sentence("Images per step. Of all ranks together.")
    'Images per step.'
    """
    head, dot, _ = text.partition(". ")
    return head + dot.strip()


def _row(one: argparse.Action, width: int) -> list[str]:
    lines = textwrap.wrap(first_sentence(one.help or "") + _values(one), width - _COLUMN - 2) or [""]
    head = f"  {_shown(one)}"
    rows = [head] if len(head) > _COLUMN else [f"{head:<{_COLUMN}}  {lines.pop(0)}"]
    return rows + [" " * (_COLUMN + 2) + line for line in lines]


def _values(one: argparse.Action) -> str:
    """The values that an option may have, and the one that it has if none is given."""
    usual = getattr(one, "usual", "" if one.default in (None, False, [], {}, argparse.SUPPRESS) else one.default)
    allowed = f" [{'|'.join(one.allowed)}]" if one.allowed else ""  # type: ignore[attr-defined]
    return allowed + (f" (default: {usual})" if usual != "" else "")


def _shown(one: argparse.Action) -> str:
    if not one.option_strings:
        return str(one.metavar or one.dest.upper())
    if isinstance(one, argparse.BooleanOptionalAction):
        return f"--[no-]{one.option_strings[0][2:]}"
    value = " ".join(one.metavar) if isinstance(one.metavar, tuple) else one.metavar or ""
    return f"{one.option_strings[0]} {value}".strip()


def _allowed(kind: Any) -> tuple[str, ...]:
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(choice for part in parts if get_origin(part) is Literal for choice in get_args(part))


def _without_none(kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    return parts[0] if get_origin(kind) in (Union, types.UnionType) and len(parts) == 1 else kind


def _reader(kind: Any) -> Callable[[str], Any]:
    """A function that turns a word into a value of that type."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)

    def read(word: str) -> Any:
        for part in parts:
            if part is type(None):
                if word in ("none", "null"):
                    return None
            elif get_origin(part) is Literal:
                if word in get_args(part):
                    return word
            elif part is Any or get_origin(part) is dict:
                import yaml

                if isinstance(value := yaml.safe_load(word), dict):
                    return value
            else:
                try:
                    return part(word)
                except ValueError:
                    continue
        if choices := _allowed(kind):
            reason = f"{word!r} is not known{nearest(word, choices)}; choose one of {', '.join(choices)}"
        else:
            reason = f"{word!r} has no meaning here; give {_WORDS.get(parts[0], 'a mapping')}"
        raise argparse.ArgumentTypeError(reason)

    return read


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word
