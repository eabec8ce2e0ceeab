"""One parser for all commands: argparse with whole names only, typed settings, files of settings and a short help."""

import argparse
import contextlib
import json
import math
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from sfumato.errors import ConfigError, nearest
from sfumato.files import write_json

_WIDTH, _COLUMN = 118, 26
_GENERAL = {"config", "json", "help"}
_NOT_IN_FILES = {*_GENERAL, "plugin"}
_METAVARS = {int: "N", float: "X", Path: "PATH"}
_WORDS = {int: "a whole number", float: "a number"}

Parsed = argparse.Namespace
"""What was parsed: settings that were not given are not in it."""


class SettingField(NamedTuple):
    """One setting.

    Attributes:
        name: of the field.
        kind: its annotated type.
        default: None where it is no literal.
        text: what the class's docstring says about it.
    """

    name: str
    kind: Any
    default: Any
    text: str


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

    def add_argument(
        self,
        *names: str,
        type: Any = None,
        usual: str | None = None,
        bound: tuple[str, float] | None = None,
        **options: Any,
    ) -> argparse.Action:
        """As argparse's, for annotated types (`int | None`, `Literal[...]`).

        `usual` is shown as the default; `bound` is `(">", least)` or `(">=", least)` for a number.
        """
        if type is not None:
            options["type"] = _reader(type, bound)
        action: argparse.Action = super().add_argument(*names, **options)
        if usual is None:
            usual = "" if action.default in (None, False, argparse.SUPPRESS) else str(action.default)
        choices = _choices(type)
        action.values = (f" [{'|'.join(choices)}]" if choices else "") + (f" (default: {usual})" if usual else "")  # type: ignore[attr-defined]
        self.sections[-1].actions.append(action)
        return action

    def add_setting(self, one: SettingField, usual: str | None = None) -> None:
        """Offer a setting of a dataclass, which keeps its default; booleans as `--name` and `--no-name`."""
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": one.name, "help": one.text}
        parts = [part for part in _parts(one.kind) if part is not types.NoneType]
        if usual is None:
            shown = one.default if isinstance(one.default, tuple) else (one.default,)
            usual = " ".join(str(value) for value in shown if value not in (None, "none"))
        if one.kind is bool:
            options |= {"action": argparse.BooleanOptionalAction, "usual": "on" if one.default else "off"}
        elif get_origin(one.kind) is tuple:
            options |= {"type": get_args(one.kind)[0], "nargs": "+", "usual": usual, "metavar": "VALUE"}
        else:
            metavar = "NAME" if _choices(one.kind) else _METAVARS.get(parts[-1], "TEXT")
            options |= {"type": one.kind, "usual": usual, "metavar": metavar}
        self.add_argument(f"--{one.name.replace('_', '-')}", **options)

    def read(self, words: Sequence[str]) -> Parsed:
        """Parse, taking `--data-dir` and `--data_dir` alike.

        Raises:
            ConfigError: the words, or the file that `--config` names, are mistaken.
        """
        words = [_dashed(word) for word in words]
        if (at := next((i for i, word in enumerate(words) if word.partition("=")[0] == "--config"), None)) is not None:
            path = words[at].partition("=")[2] or "".join(words[at + 1 : at + 2])
            words = [*self._words_of(Path(path)), *words]
        parsed, rest = self.parse_known_args(words)
        if rest:
            known = [name for one in self.options().values() for name in one.option_strings]
            self.error(f"unknown option {rest[0]}{nearest(rest[0].partition('=')[0], known)}")
        if parsed.json == "-" or "sfumato.cli.console" in sys.modules:  # a server has no rich
            from sfumato.cli.console import console

            console.stderr = parsed.json == "-"
        return parsed

    def error(self, message: str) -> NoReturn:
        """What is wrong, as every other mistake of a user's."""
        raise ConfigError(f"{message.removeprefix('argument ')}; `{self.prog} --help` shows the options")

    def format_help(self) -> str:
        """Usage, purpose, example, and a line for every option; the pages have the long texts."""
        width = min(shutil.get_terminal_size().columns, _WIDTH) if sys.stdout.isatty() else _WIDTH
        arguments = [one for section in self.sections for one in section.actions if not one.option_strings]
        usage = (f"[{one.metavar}]" if one.nargs == "?" else head_of(one) for one in arguments)
        lines = [f"usage: {' '.join([self.prog, *usage, '[options]'])}", ""]
        lines += [*textwrap.wrap(self.description or "", width), "", f"example: {self.example}"]
        for section in self.sections:
            lines += ["", f"{section.title}:"]
            if section.names_only:
                names = "  ".join(map(head_of, section.actions))
                lines += ["  " + line for line in textwrap.wrap(names, width - 2, break_on_hyphens=False)]
            else:
                for one in sorted(section.actions, key=lambda one: (bool(one.option_strings), one.dest in _GENERAL)):
                    lines += _row(one, width)
        return "\n".join(lines) + "\n"

    def options(self) -> dict[str, argparse.Action]:
        """All options by the name of what they set."""
        return {one.dest: one for section in self.sections for one in section.actions if one.option_strings}

    def _words_of(self, path: Path) -> list[str]:
        """The words that a file of settings stands for."""
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {path} ({' '.join(str(error).split())}); give a YAML file") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no settings; write lines such as `epochs: 30`")
        options, words = {name: one for name, one in self.options().items() if name not in _NOT_IN_FILES}, []
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in options:
                why = "cannot be set by a file" if name in _NOT_IN_FILES else f"is no setting{nearest(name, options)}"
                raise ConfigError(f"{key} in {path} {why}; take it out, or see `{self.prog} --help`")
            option, *negative = options[name].option_strings
            if isinstance(value, bool | list):
                words += [option, *map(str, value)] if isinstance(value, list) else [option] if value else negative
            elif value is not None:
                words.append(f"{option}={json.dumps(value) if isinstance(value, dict) else value}")
        return words


def load_plugins(parsed: Parsed) -> None:
    """Run the files that `--plugin` names."""
    from sfumato.defenses import load_plugin  # loads torch, which the commands of device and server do without

    for plugin in parsed.plugin or ():
        load_plugin(plugin)


def given(parsed: Parsed, cls: type) -> dict[str, Any]:
    """What was given of the fields of a settings dataclass."""
    values = {name: getattr(parsed, name) for name in cls.__dataclass_fields__ if name in parsed}  # type: ignore[attr-defined]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


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
    text = first_sentence(one.help or "") + one.values  # type: ignore[attr-defined]
    lines, head = textwrap.wrap(text, width - _COLUMN - 2), f"  {head_of(one)}"
    rows = [head] if len(head) > _COLUMN else [f"{head:<{_COLUMN}}  {lines.pop(0)}"]
    return rows + [" " * (_COLUMN + 2) + line for line in lines]


def head_of(one: argparse.Action) -> str:
    """An option as it is typed, with a word for its value."""
    value = " ".join(one.metavar) if isinstance(one.metavar, tuple) else one.metavar or ""
    value += "..." * (one.nargs == "+")
    if isinstance(one, argparse.BooleanOptionalAction):
        return f"--[no-]{one.option_strings[0][2:]}"
    return " ".join([*one.option_strings, value]).strip()


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _choices(kind: Any) -> tuple[str, ...]:
    return tuple(choice for part in _parts(kind) if get_origin(part) is Literal for choice in get_args(part))


def _reader(kind: Any, bound: tuple[str, float] | None = None) -> Callable[[str], Any]:
    """A function that turns a word into a value of that type."""

    def bounded(word: str) -> Any:
        value = read(word)
        if bound is not None and not (bound[1] < value < math.inf or (bound[0] == ">=" and value == bound[1])):
            remedy = "a positive number" if bound == (">", 0) else f"at least {bound[1]:g}"
            raise argparse.ArgumentTypeError(f"{word} has no meaning here; give {remedy}")
        return value

    def read(word: str) -> Any:
        for part in _parts(kind):
            if part is types.NoneType:
                if word in ("none", "null"):
                    return None
            elif get_origin(part) is Literal:
                if word in get_args(part):
                    return word
            else:
                with contextlib.suppress(ValueError):
                    return _mapping(word) if get_origin(part) is dict else part(word)
        if choices := _choices(kind):
            reason = f"{word!r} is not known{nearest(word, choices)}; choose one of {', '.join(choices)}"
        else:
            reason = f"{word!r} has no meaning here; give {_WORDS.get(_parts(kind)[0], 'a mapping')}"
        raise argparse.ArgumentTypeError(reason)

    return bounded


def _mapping(word: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(word)
    return value


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word
