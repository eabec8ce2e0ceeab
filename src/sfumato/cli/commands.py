"""What every command understands, read from `commands.txt`; settings are read from the source of their dataclasses."""

import ast
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from sfumato.cli.parser import CommandParser, SettingField

_PACKAGE = Path(__file__).parents[1]
_TYPES = {"Literal": Literal, "Path": Path, "Any": Any}


@cache
def fields_of(where: str) -> tuple[SettingField, ...]:
    """The fields of the dataclass `package.module:Class`, with types, defaults and texts, those it inherits first."""
    module, _, name = where.partition(":")
    module, node = _find(module, name)
    assert isinstance(node, ast.ClassDef)
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    found = {field.name: field for base in bases for field in fields_of(f"{module}:{base}")}
    about = (ast.get_docstring(node) or "").partition("Attributes:")[2]
    texts = {
        key: " ".join(body.split())
        for key, body in re.findall(r"\n {4}(\w+): (.*?)(?=\n {4}\w+:|\n\n|\Z)", about, re.S)
    }
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            key = line.target.id
            text = texts.get(key, found[key].text if key in found else "")
            found[key] = SettingField(key, _type(module, line.annotation), _default(line.value), text)
    return tuple(found.values())


def names_in(where: str) -> dict[str, list[str]]:
    """The keys of the dictionary `package.module:NAME`, and for each the names that its value is made of."""
    module, _, name = where.partition(":")
    _, node = _find(module, name)
    assert isinstance(node, ast.Dict)
    return {
        str(key.value): [one.id for one in ast.walk(value) if isinstance(one, ast.Name)]
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
    }


@cache
def _tree(module: str) -> ast.Module:
    path = _PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(module: str, name: str) -> tuple[str, ast.AST]:
    """Where a name of a module is defined, and how, through its imports."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return module, node.value
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            return _find(node.module, name)
    raise LookupError(f"{module} has no {name}")


def _type(module: str, node: ast.expr) -> Any:
    known = dict(_TYPES)
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and one.id not in known and one.id not in _BUILTIN:
            alias_module, alias = _find(module, one.id)
            assert isinstance(alias, ast.expr)
            known[one.id] = _type(alias_module, alias)
    return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": _BUILTIN} | known)


_BUILTIN = {kind.__name__: kind for kind in (int, float, str, bool, tuple, list, dict)}


def _default(node: ast.expr | None) -> Any:
    try:
        return None if node is None else eval(compile(ast.Expression(node), "default", "eval"), {"__builtins__": {}})
    except NameError:  # made by a function, or named elsewhere: the text says it
        return None


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
    mark = "|" if " = " in row else ", "
    row = re.sub(r"\{([\w.]+:\w+)\}", lambda found: mark.join(names_in(found[1])), row)
    head, text = re.split(r" {2,}", row, maxsplit=1)
    head, _, usual = head.partition(" = ")
    name, *values = re.sub(r"\.\.\.$", "", head).strip("[]").split()
    name, needed, _ = name.partition("!")
    many = head.endswith("...")
    words = values[0].split("|") if values else ["TEXT"]
    words[0], bound, least = re.fullmatch(r"([^>]+)(>=?)?(\d+)?", words[0]).groups()  # type: ignore[union-attr]
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
        parser.add_argument(
            name, type=kind, metavar=metavar, nargs=nargs, default=default, help=text, required=bool(needed),
            bound=(bound, float(least)) if bound else None,
        )  # fmt: skip


def _settings(words: str) -> list[tuple[SettingField, str | None]]:
    """Settings with the defaults to show; None: the setting's own."""
    where, _, choice = words.partition(" ")
    how, *names = choice.split() or ("but",)
    if not where.endswith("[]"):
        offered = {one.name: one for one in fields_of(where)}
        chosen = names if how == "only" else [name for name in offered if name not in names]
        return [(offered[name], None) for name in chosen]
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
