"""The steps before and behind a cut, what has to cross it, and what differs between training and evaluation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sfumato.split.recorder import Recording
from sfumato.split.values import Step, Value, parts, walk

__all__ = ["OTHER_STEPS", "Choice", "Course", "Obstacle", "course", "divide", "merged", "needed"]

OTHER_STEPS = (
    "the model's forward runs through other operations in training than in evaluation; move that choice into a "
    "submodule that does not contain the layer"
)

_FULL_MASK = (
    "of an attention mask give the full form, which Hugging Face's models take as it is: "
    "mask[:, None, None, :].bool().expand(-1, -1, mask.shape[1], -1), in causal models with .tril()"
)

Arguments = Mapping[Step, tuple[Any, Any]]
"""The positional and the named arguments of steps."""


class Obstacle(Exception):
    """Why there is no cut behind a layer: a few words; where something else crosses, what and who needs it."""

    def __init__(self, reason: str, strays: dict[Value, Step | None] | None = None) -> None:
        super().__init__(reason)
        self.strays = strays or {}


@dataclass
class Course:
    """A forward as a list of steps, in which only the parents of one layer are opened, and how it divides there."""

    recording: Recording
    steps: list[Step]  # in the order in which they happen; modules that are no parents are single steps
    index: int  # number of steps up to and including the layer
    cut: Value  # the layer's output, or of several the one that is used
    opened: set[Step]  # the calls of the parents, whose outputs are those of their steps
    data: set[Step] = field(default_factory=set)  # depend on the input's values, or must not happen twice
    shared: set[Step] = field(default_factory=set)  # depend on what both sides get, and not on the input's values
    arguments: Arguments = field(default_factory=dict)  # of the steps, which may depend on the mode
    edge: list[Step] = field(default_factory=list)  # those that the layer's output needs
    cloud: list[Step] = field(default_factory=list)  # those behind the cut that the answer needs
    repeated: list[Step] = field(default_factory=list)  # before the cut, needed behind it, independent of the data
    sizes: list[Value] = field(default_factory=list)  # of what lies before the cut, needed behind it
    front: list[Step] = field(default_factory=list)  # before the cut, and those behind it that read such sizes

    def resolved(self, value: Value) -> Value:
        """The value itself, where it is the output of an opened module."""
        while value.step in self.opened:
            if value.inner is None:
                raise Obstacle(f"{_quoted(value.step)} gives what no operation that can be recorded has made")
            value = value.inner
        return value

    def inputs(self, step: Step) -> list[Value]:
        """What a step needs."""
        return [self.resolved(value) for value in step.inputs]

    def of_data(self, value: Value) -> bool:
        """Whether it depends on the input's values."""
        return not value.size and (value.source == "input" or value.step in self.data)

    def of_shared(self, value: Value) -> bool:
        """Whether it depends on the values of what both sides get, such as a mask."""
        return not value.size and (value.source == "shared" or value.step in self.shared)

    def answer(self) -> list[Value]:
        """The values in the model's result."""
        return [self.resolved(leaf) for _, leaf in walk(self.recording.answer) if isinstance(leaf, Value)]


def course(recording: Recording, layer: Step) -> Course:
    """Open the parents of a called layer and nothing else, or raise the `Obstacle`."""
    opened, parent = set(), layer.parent
    while parent is not None and parent.kind == "module" and parent.module is not None:
        opened.add(parent)
        parent = parent.parent
    steps: list[Step] = []

    def emit(body: Iterable[Step]) -> None:
        for step in body:
            if step in opened or _free(recording, step, layer):
                opened.add(step)
                emit(step.body)
            else:
                steps.append(step)

    emit(recording.root.body)
    made = Course(recording, steps, steps.index(layer) + 1, Value("unknown"), opened)
    _follow(made)
    given = [leaf for _, leaf in walk(layer.result) if isinstance(leaf, Value)]
    if not isinstance(layer.result, Value):  # of several outputs, the one that is used
        _, used = needed(made, steps[made.index :], made.answer())
        given = [value for value in given if value in used]
    if len(given) != 1:
        raise Obstacle(
            f"it gives a {type(layer.output).__name__} of which {len(given)} tensors are used, and only one can cross"
        )
    made.cut = given[0]
    return made


def _free(recording: Recording, step: Step, layer: Step) -> bool:
    """Whether a module is given the data and what it gives does not depend on them, such as rotations by position.

    Its steps, unlike the module, can be repeated behind the cut.
    """
    given = [leaf for _, leaf in walk(step.result) if isinstance(leaf, Value)]
    return (
        step.kind == "module"
        and step is not layer
        and bool(given)
        and not any(map(recording.depends, given))
        and any(map(recording.depends, step.inputs))
    )


def _follow(made: Course) -> None:
    """Find what depends on the input, and refuse what cannot be repeated as a graph."""
    done: set[Step] = set()
    for step in made.steps:
        inputs = made.inputs(step)
        follows = any(made.of_data(value) for value in inputs)
        shared = any(made.of_shared(value) for value in inputs)
        if step.kind == "look":
            if (follows or shared) and step.target != "__len__":
                what, remedy = "decides by random numbers", "move that into a submodule that does not contain the layer"
                if any(map(made.recording.depends, step.inputs)):
                    what = "looks at values of the data"
                elif shared:
                    what, remedy = "looks at values of the other inputs", _FULL_MASK
                raise Obstacle(
                    f"the forward of {_quoted(step.parent)} {what} ({step.target}, {step.where}), which a graph cannot "
                    f"follow; {remedy}"
                )
            continue
        for value in inputs:
            if value.source == "unknown":
                raise Obstacle(
                    f"{step.where} uses a tensor from a function that cannot be recorded, such as a compiled one"
                )
            if value.source == "step" and value.step not in done:
                raise Obstacle(
                    f"{step.where} uses a tensor from inside {_quoted(value.step and value.step.parent)} that it does "
                    "not return"
                )
        if step.cut_gradient and follows:
            raise Obstacle(
                f"the forward of {_quoted(step.parent)} computes under torch.no_grad ({step.where}), which a graph "
                "does not keep; freeze parameters by requires_grad_(False)"
            )
        if step.autocast and follows and not step.sizes:
            raise Obstacle(
                f"the forward of {_quoted(step.parent)} computes under torch.autocast ({step.where}), which a graph "
                "does not keep; put it around the model, or into a submodule that does not contain the layer"
            )
        done.add(step)
        if follows or step.random or step.mutates:
            made.data.add(step)
        elif shared:
            made.shared.add(step)


def divide(made: Course) -> None:
    """Divide the steps, or raise the `Obstacle` that something besides the layer's output crosses."""
    front, behind = made.steps[: made.index], made.steps[made.index :]
    made.edge, _ = needed(made, front, [made.cut])
    before = {None, *front} - {made.cut.step}
    early = [step for step in behind if step.sizes and all(value.step in before for value in made.inputs(step))]
    made.front, behind = front + early, [step for step in behind if step not in set(early)]
    made.cloud, outside = needed(made, behind, made.answer())
    strays = {value: user for value, user in outside.items() if value is not made.cut and made.of_data(value)}
    if strays:
        raise Obstacle("something else crosses", strays)
    made.repeated, rest = needed(made, [step for step in made.front if step not in made.data], list(outside))
    made.sizes = [value for value in rest if value.size]


def needed(made: Course, steps: list[Step], wanted: list[Value]) -> tuple[list[Step], dict[Value, Step | None]]:
    """Those of the steps that the wanted values need or that change a tensor, and what these take from elsewhere."""
    places, live = set(steps), {value.step for value in wanted}
    kept: list[Step] = []
    taken: dict[Value, Step | None] = dict.fromkeys(wanted)
    for step in reversed(steps):
        if step.kind != "look" and (step in live or step.mutates):
            kept.append(step)
            inputs = made.inputs(step)
            live.update(value.step for value in inputs)
            taken.update(dict.fromkeys(inputs, step))
    return kept[::-1], {
        value: user for value, user in taken.items() if value.source != "step" or value.step not in places
    }


def _quoted(step: Step | None) -> str:
    return repr(step.target) if step is not None and step.target else "the model"


@dataclass(frozen=True)
class Choice:
    """A constant that is one thing in training and another in evaluation."""

    training: Any
    evaluation: Any


def merged(evaluation: Course, training: Course) -> Arguments:
    """The arguments of evaluation's steps, with a `Choice` wherever training has another constant.

    So one graph serves both modes: where a forward reads `self.training`, so does the graph. An `Obstacle` where the
    two modes do not run through the same operations.
    """
    steps, twins = ([step for step in made.steps if step.kind != "look"] for made in (evaluation, training))
    if [(a.kind, a.target) for a in steps] != [(b.kind, b.target) for b in twins]:
        raise Obstacle(OTHER_STEPS)
    places = {step: place for side in (steps, twins) for place, step in enumerate(side)}

    def key(made: Course, value: Value) -> Any:
        value = made.resolved(value)
        return value.source, None if value.step is None else places.get(value.step), value.path, value.name

    def leaf(a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, Value):
            constants = a.source == b.source == "constant"
            if not (torch.equal(a.held, b.held) if constants else key(evaluation, a) == key(training, b)):
                raise Obstacle(OTHER_STEPS)
            return a
        if isinstance(a, Value) or isinstance(b, Value):
            raise Obstacle(OTHER_STEPS)
        return a if a is b or (type(a) is type(b) and a == b) else Choice(b, a)

    _zipped(evaluation.recording.answer, training.recording.answer, leaf)
    pairs = zip(steps, twins, strict=True)
    return {a: (_zipped(a.args, b.args, leaf), _zipped(a.kwargs, b.kwargs, leaf)) for a, b in pairs}


def _zipped(a: Any, b: Any, leaf: Callable[[Any, Any], Any]) -> Any:
    """Two templates of one form, leaf by leaf."""
    first, second = parts(a), parts(b)
    if first is None:
        return leaf(a, b)
    if second is None or type(a) is not type(b) or list(first.keys) != list(second.keys):
        raise Obstacle(OTHER_STEPS)
    return first.make([_zipped(i, j, leaf) for i, j in zip(first.values, second.values, strict=True)])
