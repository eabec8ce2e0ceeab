"""One look at a model: where it can be cut, where not, and why."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.split.recording import OtherSteps, record
from sfumato.split.steps import Course, Crossing, Obstacle, course, crossing
from sfumato.split.values import Step, Value

__all__ = ["Survey", "undisturbed"]


class Survey:
    """A model's forward, recorded once in evaluation mode, with every question that a cut asks of it.

    Args:
        model: any module whose forward takes one tensor.
        example: (N, ...) a batch that it accepts.

    Raises:
        ConfigError: the forward needs several inputs, or the model does not run on the example.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
        if not isinstance(example, Tensor):
            raise ConfigError(f"example_input is a {type(example).__name__}; give a batch of inputs as one tensor")
        if example.ndim == 0 or len(example) == 0:
            raise ConfigError(f"example_input has the shape {tuple(example.shape)}; give a batch of at least one input")
        self.model, self.example = model, example
        self.argument = _argument(model)
        with undisturbed(model), evaluating(model):
            self.recording = record(model, example)
        self.calls: dict[nn.Module, list[Step]] = {}
        for call in self.recording.calls():
            if call.module is not None:
                self.calls.setdefault(call.module, []).append(call)
        self._possible: list[tuple[int, str]] | None = None

    def call(self, layer: nn.Module) -> Step:
        """The one call of a layer.

        Raises:
            Obstacle: it is called never, or more than once.
        """
        calls = self.calls.get(layer, [])
        if len(calls) != 1:
            times = f"{len(calls)} times" if calls else "never"
            raise Obstacle(f"the forward calls it {times}, and a cut needs a layer that runs once")
        return calls[0]

    def at(self, layer: nn.Module) -> tuple[Course, Crossing]:
        """How the forward divides behind a layer.

        Raises:
            Obstacle: it does not.
        """
        made = course(self.recording, self.call(layer))
        return made, crossing(made)

    def in_training(self, made: Course, layer: nn.Module) -> Course:
        """The same forward in training mode. Only the layer's parents run; all others answer as in evaluation.

        Raises:
            Obstacle: they call other modules in training, or do not run.
        """
        opened = {call.module for call in made.opened if call.module is not None}
        replay = iter([step for step in made.steps if step.kind == "module"])
        with undisturbed(self.model), evaluating(self.model):
            for part in opened:
                part.training = True
            try:
                twin = record(self.model, self.example, expanded=opened, replay=replay)
            except OtherSteps:
                raise Obstacle(
                    "the model's forward runs through other operations in training than in evaluation; move that "
                    "choice into a submodule that does not contain the layer"
                ) from None
        (call,) = [one for one in twin.calls() if one.module is layer]
        return course(twin, call)

    def nearest(self, layer: nn.Module) -> str:
        """The nearest cuts that work, as the end of a sentence."""
        if self._possible is None:
            self._possible = list(self._cuts())
        place = next((n for n, call in enumerate(self.recording.calls()) if call.module is layer), -1)
        before = [name for n, name in self._possible if n < place][-1:]
        behind = [name for n, name in self._possible if n > place][:1]
        if not before and not behind:
            return "there is no cut that works; write the two halves as modules of your own and pass them to SplitModel"
        found = [f"{name!r} before it" for name in before] + [f"{name!r} behind it" for name in behind]
        return f"cut at {' or '.join(found)} instead"

    def _cuts(self) -> Iterator[tuple[int, str]]:
        for place, call in enumerate(self.recording.calls()):
            try:
                self.at(call.module)  # type: ignore[arg-type]
            except Obstacle:
                continue
            yield place, call.target

    def why(self, obstacle: Obstacle) -> str:
        """What an obstacle says, with the strays by name."""
        if not obstacle.strays:
            return str(obstacle)
        return "; ".join(self._stray(value, user) for value, user in obstacle.strays.items())

    def _stray(self, value: Value, user: Step | None) -> str:
        if value.source == "input":
            what = f"the model's input {self.argument!r}"
        elif value.step is not None and value.step.kind == "module":
            what = f"the output of {value.step.target!r}"
        else:
            step = value.step
            what = "a tensor" if step is None else f"the result of {name_of(step)} in {place_of(step)}"
        if user is None:
            return f"{what}, which the model returns"
        return f"{what}, which {repr(user.target) if user.kind == 'module' else place_of(user)} needs later"


def name_of(step: Step) -> str:
    """What a step does, in a word."""
    return str(getattr(step.target, "__name__", step.target))


def place_of(step: Step) -> str:
    """In whose forward a step happens, and where that is written."""
    owner = repr(step.parent.target) if step.parent is not None and step.parent.target else "the model's forward"
    return f"{owner} ({step.where})" if step.where else owner


def _argument(model: nn.Module) -> str:
    """Name of the one input."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1:
        raise ConfigError(
            f"the model's forward takes {len(required)} inputs ({', '.join(required)}), a split model one; "
            "wrap it in a module whose forward takes the image alone"
        )
    if not parameters:
        raise ConfigError("the model's forward takes no input; give a model that takes a batch")
    return parameters[0].name if parameters[0].kind is not parameters[0].VAR_POSITIONAL else "x"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Buffers and random generators afterwards as before."""
    devices = {p.device for p in (*model.parameters(), *model.buffers()) if p.device.type == "cuda"}
    kept = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers() if not buffer.is_inference()]
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, copy in kept:
                    if buffer._version != version:
                        buffer.copy_(copy)
