"""What a recording consists of: values, and the steps that make them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["Arguments", "Attribute", "Record", "Source", "Step", "Value", "rebuilt", "template", "walk"]

_LEAVES = (torch.Tensor, int, float, str, type(None), torch.dtype, torch.device)

Source = Literal["step", "input", "stored", "constant", "unknown"]
"""Where a value comes from: a recorded step, the model's input, a parameter or buffer of the model, a tensor that
existed before, or a computation that left no trace."""


class Attribute(str):
    """A part of a value that is reached by `getattr`; all other parts are reached by indexing."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Value:
    """A tensor or size in the course of a forward.

    Attributes:
        source: where it comes from.
        step: the step that made it.
        path: which part of the step's result it is; () is all of it.
        inner: for an output of a module, the value that the module's own forward gave it.
        name: of a stored value, dotted.
        held: a constant itself.
        serial: counts values in the order in which they appear.
        size: it is a number that follows from shapes alone.
    """

    source: Source
    step: "Step | None" = None
    path: tuple[Any, ...] = ()
    inner: "Value | None" = None
    name: str = ""
    held: Any = None
    serial: int = 0
    size: bool = False


@dataclass(eq=False, slots=True)
class Step:
    """One operation, one call of a module, or one look at a tensor's values.

    Attributes:
        kind: what it is; a `look` takes Python numbers out of a tensor.
        target: function, name of a method, or dotted name of a module.
        args: positional arguments, with a `Value` in place of every tensor and size.
        kwargs: arguments by name, likewise.
        parent: the call of the module in whose forward it happens.
        where: file and line.
        module: the called module.
        body: the steps of the called module's forward.
        result: what a called module returned, with values in place of tensors; `output` is that very object.
        given: the tensors among a called module's arguments.
        flops: floating-point operations of its matrix products and convolutions.
        sizes: it reads a tensor's shape, never its values.
        mutates: it changes a tensor that it was given.
        random: it draws random numbers.
        cut_gradient: it runs under `torch.no_grad` although a gradient would have passed.
    """

    kind: Literal["function", "method", "attribute", "module", "look"]
    target: Any
    args: Any = ()
    kwargs: Any = None
    parent: "Step | None" = None
    where: str = ""
    module: nn.Module | None = None
    body: "list[Step]" = field(default_factory=list)
    result: Any = None
    output: Any = None
    given: list[torch.Tensor] = field(default_factory=list)
    version: int = 0
    flops: int = 0
    sizes: bool = False
    mutates: bool = False
    random: bool = False
    cut_gradient: bool = False
    inputs: list[Value] = field(default_factory=list)

    def take(self, args: Any, kwargs: Any) -> None:
        """Set the arguments."""
        self.args, self.kwargs = args, kwargs
        self.inputs = [leaf for _, leaf in walk((args, kwargs)) if isinstance(leaf, Value)]


@dataclass(slots=True)
class Record:
    """A result or argument of a class of its own with named parts, such as a model's output class."""

    cls: type
    parts: dict[str, Any]


Arguments = Mapping[Step, tuple[Any, Any]]
"""The positional and the named arguments of steps."""


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves of nested tuples, lists, mappings, slices and dataclasses, each with its path."""
    if isinstance(tree, _LEAVES):
        yield path, tree
    elif isinstance(tree, tuple | list):
        for index, part in enumerate(tree):
            yield from walk(part, (*path, index))
    elif isinstance(tree, Record):
        yield from walk(tree.parts, path)
    elif isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from walk(part, (*path, key))
    elif isinstance(tree, slice):
        for name in ("start", "stop", "step"):
            yield from walk(getattr(tree, name), (*path, Attribute(name)))
    elif _is_record(tree):
        for one in fields(tree):
            yield from walk(getattr(tree, one.name, None), (*path, Attribute(one.name)))
    else:
        yield path, tree


def rebuilt(tree: Any, new: Callable[[tuple[Any, ...], Any], Any], path: tuple[Any, ...] = ()) -> Any:
    """The same structure with new leaves, or the same object where no leaf is new."""
    if isinstance(tree, _LEAVES):
        return new(path, tree)
    if isinstance(tree, tuple | list):
        parts = [rebuilt(part, new, (*path, index)) for index, part in enumerate(tree)]
        if all(a is b for a, b in zip(parts, tree, strict=True)):
            return tree
        if hasattr(tree, "_fields"):
            return type(tree)(*parts)
        return type(tree)(parts)
    if isinstance(tree, Mapping):
        changed = {key: rebuilt(part, new, (*path, key)) for key, part in tree.items()}
        if all(changed[key] is part for key, part in tree.items()):
            return tree
        if is_dataclass(tree):
            return type(tree)(**changed)
        other = copy.copy(tree)
        other.update(changed)  # type: ignore[attr-defined]
        return other
    if isinstance(tree, slice):
        return slice(*(rebuilt(getattr(tree, name), new, path) for name in ("start", "stop", "step")))
    if _is_record(tree):
        parts_ = {f.name: getattr(tree, f.name, None) for f in fields(tree)}
        fresh = {name: rebuilt(part, new, (*path, Attribute(name))) for name, part in parts_.items()}
        if all(fresh[name] is part for name, part in parts_.items()):
            return tree
        other = copy.copy(tree)
        for name, part in fresh.items():
            object.__setattr__(other, name, part)
        return other
    return new(path, tree)


def template(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The structure in plain containers, classes with named parts as `Record`, and every leaf as `leaf` gives it."""
    if isinstance(tree, _LEAVES):
        return leaf(tree)
    if isinstance(tree, tuple):
        parts = [template(part, leaf) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, list):
        return [template(part, leaf) for part in tree]
    if isinstance(tree, Mapping):
        named = {key: template(part, leaf) for key, part in tree.items()}
        return Record(type(tree), named) if is_dataclass(tree) else named
    if isinstance(tree, slice):
        return slice(*(template(getattr(tree, name), leaf) for name in ("start", "stop", "step")))
    if _is_record(tree):
        return Record(type(tree), {f.name: template(getattr(tree, f.name, None), leaf) for f in fields(tree) if f.init})
    return leaf(tree)


def _is_record(tree: Any) -> bool:
    return is_dataclass(tree) and not isinstance(tree, type | Value | Step | Record)
