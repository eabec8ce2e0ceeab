"""What every command understands, read from `commands.txt`; its own file is loaded once its words are parsed."""

import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from sfumato.cli.fields import SettingField, fields_of, names_in
from sfumato.cli.parser import CommandParser

_KINDS: dict[str, Any] = {"N": int, **dict.fromkeys(("X", "POINTS", "SHARE"), float), "MAPPING": dict[str, Any]}
_PAGE = files("sfumato.cli").joinpath("commands.txt").read_text(encoding="utf-8")
_BLOCKS = {found[1]: found for found in re.finditer(r"^== (\w+): (.*)\n((?s:.*?))(?=^== |\Z)", _PAGE, re.M)}
COMMANDS = {name: found[2] for name, found in _BLOCKS.items()}


@cache
def parser_of(command: str) -> CommandParser:
    """The parser of a command, one of `COMMANDS`."""
    about, example, rows = re.split(r"\n\nexample: (.*)\n\n", _BLOCKS[command][3], maxsplit=1)
    parser = CommandParser(command, " ".join(about.split()), example)
    for row in re.sub(r"\n +", " ", rows.strip()).splitlines():
        mark, _, rest = row.partition(" ")
        if mark in ("#", "#-"):
            parser.section(rest, names_only=mark == "#-")
        elif mark == "@":
            for setting, usual in _settings(rest):
                parser.add_setting(setting, usual)
        else:
            _add_row(parser, row)
    return parser


def _add_row(parser: CommandParser, row: str) -> None:
    row = re.sub(r"\{([\w.]+:\w+)\}", lambda found: _names(found[1], "|" if " = " in row else ", "), row)
    head, text = re.split(r" {2,}", row, maxsplit=1)
    head, _, usual = head.partition(" = ")
    name, *values = re.sub(r"\.\.\.$", "", head).strip("[]").split()
    many = head.endswith("...")
    words = values[0].split("|") if values else ["TEXT"]
    kind = Literal[tuple(words)] if len(words) > 1 else _KINDS.get(words[0], str)
    default = (kind(usual) if kind in (int, float) else usual) if usual else None
    if not name.startswith("-"):
        nargs: int | str | None = "?" if head.startswith("[") else "+" if many else None
        parser.add_argument(name.lower() + "s" * many, type=kind, metavar=name, nargs=nargs, default=default, help=text)
    elif not values:
        parser.add_argument(name, action="store_true", help=text)
    else:
        metavar = "NAME" if len(words) > 1 else words[0] if len(values) == 1 else tuple(values)
        nargs = len(values) if len(values) > 1 else "+" if many else None
        parser.add_argument(name, type=kind, metavar=metavar, nargs=nargs, default=default, help=text)


def _names(where: str, mark: str) -> str:
    return mark.join(names_in(where))


def _settings(words: str) -> list[tuple[SettingField, str | None]]:
    """Settings with the defaults to show; None: the setting's own."""
    where, _, choice = words.partition(" ")
    how, *names = choice.split() or ("but",)
    if not where.endswith("[]"):
        offered = {one.name: one for one in fields_of(where)}
        return [
            (offered[name], None)
            for name in (names if how == "only" else offered)
            if how == "only" or name not in names
        ]
    owners: dict[str, dict[str, SettingField]] = {}
    classes = {key: one[-1] for key, one in names_in(where.removesuffix("[]")).items()}
    for key, cls in classes.items():
        for field in fields_of(f"{where.partition(':')[0]}:{cls}"):
            owners.setdefault(field.name, {})[key] = field
    found = []
    for among in owners.values():
        usual = {key: one.default for key, one in among.items() if one.default is not None}
        same = len(among) == len(classes) and len(set(usual.values())) == 1
        shown = None if same else ", ".join(f"{key} {value}" for key, value in usual.items())
        found.append((next(iter(among.values())), shown))
    return found
