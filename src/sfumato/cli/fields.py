"""Settings dataclasses as the command line offers them, read from their source: importing them would load torch."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["SettingField", "fields_of", "names_in"]

_PACKAGE = Path(__file__).parents[1]
_TYPES = {"Literal": Literal, "Path": Path, "Any": Any}


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
