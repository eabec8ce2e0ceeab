"""What a recording consists of: values, the steps that make them, and nested structures of values."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

__all__ = ["Attribute", "Record", "Step", "Value", "parts", "rebuilt", "template", "walk"]

_LEAVES = (torch.Tensor, int, float, str, type(None), torch.dtype, torch.device)


class Attribute(str):
    """A part of a value that is reached by `getattr`; all other parts are reached by indexing."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Value:
    """A tensor or size in the course of a forward.

    It comes from a recorded step, is the model's input or one that both sides get (such as an attention mask), a
    parameter or buffer of the model, a tensor that existed before, or of a computation that left no trace.
    """

    source: Literal["step", "input", "shared", "stored", "constant", "unknown"]
    step: "Step | None" = None  # that made it
    path: tuple[Any, ...] = ()  # which part of the step's result it is; () is all of it
    inner: "Value | None" = None  # of an output of a module, the value that the module's own forward gave it
    name: str = ""  # of a stored value, dotted, or of an input that both sides get
    held: Any = None  # a constant itself
    serial: int = 0  # counts values in the order in which they appear
    size: bool = False  # it is a number that follows from shapes alone


@dataclass(eq=False, slots=True)
class Step:
    """One operation, one call of a module, or one look at a tensor's values (Python numbers taken out of it)."""

    kind: Literal["function", "method", "attribute", "module", "look"]
    target: Any  # function, name of a method, or dotted name of a module
    args: Any = ()  # with a `Value` in place of every tensor and size
    kwargs: Any = None  # likewise
    parent: "Step | None" = None  # the call of the module in whose forward it happens
    where: str = ""  # file and line
    module: nn.Module | None = None  # the called one
    body: "list[Step]" = field(default_factory=list)  # the steps of its forward
    result: Any = None  # what it returned, with values in place of tensors
    output: Any = None  # that very object
    version: int = 0  # how often the output had been changed in place when the module returned it
    flops: int = 0  # of its matrix products and convolutions
    sizes: bool = False  # it reads a tensor's shape, never its values
    mutates: bool = False  # it changes a tensor that it was given
    random: bool = False  # it draws random numbers
    cut_gradient: bool = False  # it runs under `torch.no_grad` although a gradient would have passed
    autocast: bool = False  # it runs under a `torch.autocast` that the forward opened or closed
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


class Parts(NamedTuple):
    """A container taken apart: keys, parts, and how to make one like it of other parts."""

    keys: Sequence[Any]
    values: Sequence[Any]
    make: Callable[[Sequence[Any]], Any]


def parts(tree: Any) -> Parts | None:
    """A tuple, list, mapping, slice, dataclass or `Record` taken apart; None for a leaf."""
    if isinstance(tree, _LEAVES):
        return None
    if isinstance(tree, tuple | list):
        named = hasattr(tree, "_fields")
        return Parts(range(len(tree)), tree, lambda new: type(tree)(*new) if named else type(tree)(new))
    if isinstance(tree, Record):
        names = list(tree.parts)
        return Parts(names, [*tree.parts.values()], lambda new: Record(tree.cls, dict(zip(names, new, strict=True))))
    if isinstance(tree, Mapping):
        keys = list(tree)
        return Parts(keys, [tree[key] for key in keys], lambda new: _mapping(tree, dict(zip(keys, new, strict=True))))
    if isinstance(tree, slice):
        attributes = [Attribute(name) for name in ("start", "stop", "step")]
        return Parts(attributes, [tree.start, tree.stop, tree.step], lambda new: slice(*new))
    if is_dataclass(tree) and not isinstance(tree, type | Value | Step):
        attributes = [Attribute(one.name) for one in fields(tree)]
        values = [getattr(tree, name, None) for name in attributes]
        return Parts(attributes, values, lambda new: _dataclass(tree, attributes, new))
    return None


def _mapping(tree: Any, changed: dict[Any, Any]) -> Any:
    if is_dataclass(tree):
        return type(tree)(**changed)  # type: ignore[misc]
    other = copy.copy(tree)
    other.update(changed)
    return other


def _dataclass(tree: Any, names: Sequence[str], new: Sequence[Any]) -> Any:
    other = copy.copy(tree)
    for name, part in zip(names, new, strict=True):
        object.__setattr__(other, name, part)
    return other


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves of nested containers, each with its path."""
    found = parts(tree)
    if found is None:
        yield path, tree
        return
    for key, part in zip(found.keys, found.values, strict=True):
        yield from walk(part, (*path, key))


def rebuilt(tree: Any, new: Callable[[tuple[Any, ...], Any], Any], path: tuple[Any, ...] = ()) -> Any:
    """The same structure with new leaves, or the same object where no leaf is new."""
    found = parts(tree)
    if found is None:
        return new(path, tree)
    made = [rebuilt(part, new, (*path, key)) for key, part in zip(found.keys, found.values, strict=True)]
    return tree if all(a is b for a, b in zip(made, found.values, strict=True)) else found.make(made)


def template(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The structure in plain containers, classes with named parts as `Record`, and every leaf as `leaf` gives it."""
    found = parts(tree)
    if found is None:
        return leaf(tree)
    made = [template(part, leaf) for part in found.values]
    if is_dataclass(tree):
        given = {one.name for one in fields(tree) if one.init}
        return Record(type(tree), {str(key): part for key, part in zip(found.keys, made, strict=True) if key in given})
    if isinstance(tree, Mapping):
        return dict(zip(found.keys, made, strict=True))
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return tuple(made) if isinstance(tree, tuple) else made
    return found.make(made)
