"""One look at a model: where it can be cut, where not, and why."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.split.recorder import Recording, record
from sfumato.split.steps import OTHER_STEPS, Arguments, Course, Crossing, Obstacle, course, crossing, merged
from sfumato.split.values import Step, Value

__all__ = ["Survey", "name_of", "place_of", "undisturbed"]


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
        self._gradients = True
        with undisturbed(model), evaluating(model):
            try:
                self.recording = record(model, example)
            except ConfigError:
                self._gradients = False
                self.recording = record(model, example, gradients=False)
        self.calls: dict[nn.Module, list[Step]] = {}
        for call in self.recording.calls():
            if call.module is not None:
                self.calls.setdefault(call.module, []).append(call)
        self._training: dict[frozenset[nn.Module | None], Recording | Obstacle] = {}
        self._possible: list[tuple[int, Step]] | None = None

    def call(self, layer: nn.Module) -> Step:
        """The one call of a layer.

        Raises:
            Obstacle: it is called never, or more than once.
        """
        calls = self.calls.get(layer, [])
        if len(calls) != 1:
            times = f"{len(calls)} times" if calls else "never"
            raise Obstacle(f"the forward calls it {times}, and a layer to cut at has to run exactly once")
        return calls[0]

    def at(self, layer: nn.Module) -> tuple[Course, Crossing]:
        """How the forward divides behind a layer.

        Raises:
            Obstacle: it does not.
        """
        made = course(self.recording, self.call(layer))
        return made, crossing(made)

    def arguments(self, made: Course, layer: nn.Module) -> Arguments:
        """The arguments of the steps, which may depend on the mode.

        Raises:
            Obstacle: in training the layer's parents do something else, or do not run.
        """
        containers = {call.module for call in self.recording.everything() if any(step.module for step in call.body)}
        # All containers in training serve every layer at once; where that fails, the layer's parents alone may not.
        with suppress(Obstacle):
            return self._arguments(made, layer, containers)
        return self._arguments(made, layer, {call.module for call in made.opened})

    def _arguments(self, made: Course, layer: nn.Module, opened: set[nn.Module | None]) -> Arguments:
        twin = self._in_training(frozenset(opened))
        calls = [call for call in twin.everything() if call.module is layer]
        if len(calls) != 1:
            raise Obstacle(OTHER_STEPS)
        return merged(made, course(twin, calls[0]))

    def _in_training(self, opened: frozenset[nn.Module | None]) -> Recording:
        """The same forward with the opened modules in training mode, and what they consist of in evaluation mode."""
        if opened not in self._training:
            with undisturbed(self.model), evaluating(self.model):
                for part in opened:
                    if part is not None:
                        part.training = True
                try:
                    self._training[opened] = record(self.model, self.example, gradients=self._gradients)
                except ConfigError as error:
                    self._training[opened] = Obstacle(f"in training mode {error}")
        found = self._training[opened]
        if isinstance(found, Obstacle):
            raise found
        return found

    def stored(self, name: str) -> object:
        """What the model holds under a dotted name."""
        place, _, field = name.rpartition(".")
        return getattr(self.model.get_submodule(place), field)

    def possible(self) -> list[tuple[int, Step]]:
        """The calls behind which a cut works, each with its place in the order of all calls."""
        if self._possible is None:
            self._possible = []
            for place, call in enumerate(self.recording.calls()):
                with suppress(Obstacle):
                    if call.module is not None:
                        made, _ = self.at(call.module)
                        self.arguments(made, call.module)
                        self._possible.append((place, call))
        return self._possible

    def nearest(self, layer: nn.Module) -> str:
        """The nearest cuts that work, as the end of a sentence; of several at one place that around the others."""
        places = [place for place, call in enumerate(self.recording.calls()) if call.module is layer]
        if not places:
            return "sfumato.cuts lists the cuts that work"
        before = [call for place, call in self.possible() if place < places[0]][-1:]
        behind = [call for place, call in self.possible() if place > places[-1]]
        for call in behind[1:]:
            if isinstance(call.result, Value) and call.result.inner is behind[0].result:
                behind[0] = call
        found = [f"{call.target!r} before it" for call in before] + [
            f"{call.target!r} behind it" for call in behind[:1]
        ]
        if not found:
            return "no other layer can be cut either"
        return f"cut at {' or '.join(found)} instead"

    def why(self, obstacle: Obstacle) -> str:
        """What an obstacle says, with the strays by name."""
        if not obstacle.strays:
            return str(obstacle)
        return "another tensor crosses there, " + ", and ".join(
            self._stray(value, user) for value, user in obstacle.strays.items()
        )

    def _stray(self, value: Value, user: Step | None) -> str:
        if value.source == "input":
            what = f"the model's input {self.argument!r}"
        elif value.step is None:
            what = "a tensor"
        elif value.step.kind == "module":
            what = f"the output of {value.step.target!r}"
        else:
            what = f"the result of {name_of(value.step)} in {place_of(value.step)}"
        if user is None:
            return f"{what} (the model returns it)"
        return f"{what} (needed by {repr(user.target) if user.kind == 'module' else place_of(user, nested=True)})"


def name_of(step: Step) -> str:
    """What a step does, in a word."""
    return str(getattr(step.target, "__name__", step.target))


def place_of(step: Step, *, nested: bool = False) -> str:
    """In whose forward a step happens, and where that is written."""
    owner = repr(step.parent.target) if step.parent is not None and step.parent.target else "the model's forward"
    if not step.where:
        return owner
    return f"{owner}, {step.where}" if nested else f"{owner} ({step.where})"


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
