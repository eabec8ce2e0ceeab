"""One graph for training and evaluation: where a forward reads `self.training`, so does the graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.split.steps import Course, Obstacle
from sfumato.split.values import Record, Step, Value

__all__ = ["OTHER_STEPS", "Choice", "merged"]

OTHER_STEPS = (
    "the model's forward runs through other operations in training than in evaluation; move that choice into a "
    "submodule that does not contain the layer"
)


@dataclass(frozen=True)
class Choice:
    """A constant that is one thing in training and another in evaluation."""

    training: Any
    evaluation: Any


def merged(evaluation: Course, training: Course) -> dict[Step, tuple[Any, Any]]:
    """The arguments of evaluation's steps, with a `Choice` wherever training has another constant.

    Raises:
        Obstacle: the two modes do not run through the same operations.
    """
    steps, twins = _without_looks(evaluation), _without_looks(training)
    if [(a.kind, a.target) for a in steps] != [(b.kind, b.target) for b in twins]:
        raise Obstacle(OTHER_STEPS)
    places = {step: place for part in (steps, twins) for place, step in enumerate(part)}

    def key(course: Course, value: Value) -> Any:
        value = course.resolved(value)
        place = None if value.step is None else places.get(value.step)
        return value.source, place, value.path, value.name

    def same(a: Value, b: Value) -> bool:
        if a.source == b.source == "constant":
            return torch.equal(a.held, b.held)
        return bool(key(evaluation, a) == key(training, b))

    def leaf(a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, Value):
            if not same(a, b):
                raise Obstacle(OTHER_STEPS)
            return a
        if isinstance(a, Value) or isinstance(b, Value):
            raise Obstacle(OTHER_STEPS)
        return a if a is b or (type(a) is type(b) and a == b) else Choice(b, a)

    _zipped(evaluation.recording.answer, training.recording.answer, leaf)
    pairs = zip(steps, twins, strict=True)
    return {a: (_zipped(a.args, b.args, leaf), _zipped(a.kwargs, b.kwargs, leaf)) for a, b in pairs}


def _without_looks(course: Course) -> list[Step]:
    return [step for step in course.steps if step.kind != "look"]


def _zipped(a: Any, b: Any, leaf: Callable[[Any, Any], Any]) -> Any:
    """Two templates of one form, leaf by leaf."""
    if not isinstance(a, tuple | list | dict | slice | Record):
        return leaf(a, b)
    alike = type(a) is type(b)
    if not alike:
        raise Obstacle(OTHER_STEPS)
    if isinstance(a, slice):
        return slice(*(_zipped(i, j, leaf) for i, j in ((a.start, b.start), (a.stop, b.stop), (a.step, b.step))))
    if isinstance(a, Record):
        return Record(a.cls, _zipped(a.parts, b.parts, leaf))
    if len(a) != len(b) or (isinstance(a, dict) and list(a) != list(b)):
        raise Obstacle(OTHER_STEPS)
    if isinstance(a, dict):
        return {name: _zipped(a[name], b[name], leaf) for name in a}
    parts = [_zipped(i, j, leaf) for i, j in zip(a, b, strict=True)]
    return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
