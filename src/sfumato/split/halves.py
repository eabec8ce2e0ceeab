"""From steps to modules: the two halves as `torch.fx` graphs that call the model's own submodules."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from sfumato.split.steps import Choice, Course
from sfumato.split.survey import Survey
from sfumato.split.values import Attribute, Record, Step, Value, parts

__all__ = ["build"]


def build(
    survey: Survey,
    made: Course,
    name: str,
    steps: Iterable[Step],
    answer: Any,
    *,
    start: Value | None = None,
    sizes: Mapping[Value, tuple[int, int]] | None = None,
    copied: bool = False,
) -> fx.GraphModule:
    """A module that repeats some of a forward's steps, with the model's own submodules, parameters and buffers.

    Its input is that of the model, or the value `start`, called z, or a copy of it if something changes it in place
    (`copied`), and what both halves get, by name; its result is `answer`, a template of values. `sizes` gives the sizes
    that no step gives: (p, q) for p / q times the batch size, or (p, 0) for the number p.
    """
    builder = _Builder(survey, made, start, copied)
    for value, (factor, divisor) in (sizes or {}).items():
        builder.scaled(value, factor, divisor)
    for step in steps:
        builder.add(step, *made.arguments[step])
    builder.graph.output(builder.argument(answer))
    return builder.module(name)


class _Root(nn.Module):
    """What the graph's names refer to: the model's parts, and what has no name there."""

    def __init__(self, model: nn.Module, held: dict[str, Any]) -> None:
        super().__init__()
        object.__setattr__(self, "_found", (model, held))
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        model, held = self.__dict__["_found"]
        return held[name] if name in held else getattr(model, name)


def choose(training: bool, first: Any, second: Any) -> Any:
    """The first in training, the second in evaluation."""
    return first if training else second


class _Builder:
    def __init__(self, survey: Survey, made: Course, start: Value | None, copied: bool) -> None:
        self.graph = fx.Graph()
        self.image = self.graph.placeholder("z" if start else survey.argument)
        self.nodes: dict[Any, Any] = {("shared", name): self.graph.placeholder(name) for name in survey.shared}
        given = self.graph.call_method("clone", (self.image,)) if copied else self.image
        self.nodes[(start.step, start.path) if start else "input"] = given
        self._model, self._made = survey.model, made
        self._device = survey.example.device
        self._held: dict[str, Any] = {}
        self._shared: dict[Any, fx.Node] = {}

    def add(self, step: Step, args: Any, kwargs: Any) -> None:
        """One step."""
        words, named = self.argument(args), self.argument(kwargs or {})
        if step.kind == "module":
            made = self.graph.call_module(step.target, words, named)
        elif step.kind == "method":
            made = self.graph.call_method(step.target, words, named)
        elif step.kind == "attribute":
            made = self.graph.call_function(getattr, (words[0], step.target))
        else:
            made = self.graph.call_function(step.target, words, named)
        self.nodes[step, ()] = made

    def scaled(self, value: Value, factor: int, divisor: int) -> None:
        """A size as a multiple of the batch's, or as a number."""
        if divisor == 0:
            self.nodes[value.step, value.path] = factor
            return
        node = self._once("batch", lambda: self.graph.call_method("size", (self.image, 0)))
        if factor != 1:
            node = self.graph.call_function(operator.mul, (node, factor))
        if divisor != 1:
            node = self.graph.call_function(operator.floordiv, (node, divisor))
        self.nodes[value.step, value.path] = node

    def argument(self, tree: Any) -> Any:
        """A template with nodes in place of values."""
        if isinstance(tree, Value):
            return self._node(self._made.resolved(tree))
        if isinstance(tree, Choice):
            return self._choice(tree)
        if (found := parts(tree)) is not None:
            made = [self.argument(part) for part in found.values]
            if isinstance(tree, Record):
                return self.graph.call_function(tree.cls, (), dict(zip(found.keys, made, strict=True)))
            return found.make(made)
        if isinstance(tree, torch.device) and tree == self._device:
            # A tensor made on the input's device is to be made there wherever the half is moved to.
            return self._once("device", lambda: self.graph.call_function(getattr, (self.image, "device")))
        if tree is None or tree is Ellipsis or isinstance(tree, fx.node.base_types):
            return tree
        return self._kept(tree)

    def _choice(self, tree: Choice) -> Any:
        training = self._once("training", lambda: self.graph.get_attr("training"))
        pair = (tree.training, tree.evaluation)
        if pair == (True, False):
            return training
        if pair == (False, True):
            return self._once("evaluation", lambda: self.graph.call_function(operator.not_, (training,)))
        return self.graph.call_function(choose, (training, self.argument(pair[0]), self.argument(pair[1])))

    def _node(self, value: Value) -> Any:
        if value.source == "input":
            return self.nodes["input"]
        if value.source == "shared":
            return self.nodes["shared", value.name]
        if value.source == "stored":
            return self._once(("stored", value.name), lambda: self.graph.get_attr(value.name))
        if value.source == "constant":
            return self._kept(value.held)
        key = value.step, value.path
        if key not in self.nodes:
            part = Value("step", value.step, value.path[:-1])
            last = value.path[-1]
            read = getattr if isinstance(last, Attribute) else operator.getitem
            last = str(last) if isinstance(last, Attribute) else last
            self.nodes[key] = self.graph.call_function(read, (self._node(part), last))
        return self.nodes[key]

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _kept(self, thing: Any) -> fx.Node:
        """Something that belongs to nobody, as an attribute of the half."""

        def keep() -> fx.Node:
            name = f"_kept_{len(self._held)}"
            self._held[name] = thing
            return self.graph.get_attr(name)

        node: fx.Node = self._once(("kept", id(thing)), keep)
        return node

    def module(self, name: str) -> fx.GraphModule:
        """The finished graph as a module, whose parts keep their modes and their place in state dicts."""
        half = fx.GraphModule(_Root(self._model, self._held), self.graph, class_name=name)
        originals = set(self._model.modules())
        for part in half.modules():
            if part not in originals:  # the shared ones keep their own mode, frozen layers included
                part.training = self._model.training
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target != "training":
                place, _, field = str(node.target).rpartition(".")
                self._forget(half.get_submodule(place), place, field, originals)
        return half

    def _forget(self, holder: nn.Module, place: str, field: str, originals: set[nn.Module]) -> None:
        """Keep out of the state dict what the model keeps out of its own."""
        if holder in originals or field not in holder._buffers:
            return
        owner = None if field in self._held else self._model.get_submodule(place)
        if owner is None or field not in owner._buffers or field in owner._non_persistent_buffers_set:
            holder._non_persistent_buffers_set.add(field)
