"""One look at a model: where it can be cut, where not, and why."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sfumato.errors import ConfigError
from sfumato.split.recorder import Recording, called, record
from sfumato.split.steps import OTHER_STEPS, Arguments, Course, Crossing, Obstacle, course, crossing, merged
from sfumato.split.values import Record, Step, Value, parts
from sfumato.torch_utils import evaluating

__all__ = ["Survey", "name_of", "place_of", "plain_name", "undisturbed", "unwrapped"]

_WRAPPERS = ("_orig_mod", "module")


class Survey:
    """A model's forward, recorded once in evaluation mode, with every question that a cut asks of it.

    Args:
        model: any module; wrappers of `torch.compile` and of data parallelism are taken off.
        inputs: (N, ...) a batch that it accepts; or what its forward takes as a tuple, or as a mapping by name, whose
            first entry is what is to be protected.
        shared: further inputs by name: tensors with N rows that both sides get, such as an attention mask, or values
            that stay as they are.
        part: of the answer that is wanted, see `answer_of`.

    Raises:
        ConfigError: the forward needs other inputs, or the model does not run on these, or gives no such part.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        shared: Mapping[str, Any] | None = None,
        part: str | int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
        if not isinstance(shared or {}, Mapping):
            raise ConfigError(f"example_kwargs is a {type(shared).__name__}; give a dict of inputs by name")
        if isinstance(model, torch.jit.ScriptModule):
            raise ConfigError(
                "the model is TorchScript, whose forward cannot be recorded; give the module it was made of"
            )
        self.model, self.part = unwrapped(model), part
        self.argument, self.example, self._options, self._name = _arguments(self.model, inputs, dict(shared or {}))
        self.shared = {name: part for name, part in self._options.items() if isinstance(part, Tensor)}
        self._gradients = True
        if any(is_lazy(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())):
            # The first run gives lazy layers their shapes; what goes wrong in it goes wrong below, too, and is said.
            with evaluating(self.model), suppress(Exception):
                called(self.model, self.example.clone(), self._options, self._name)
        with undisturbed(self.model), evaluating(self.model):
            try:
                self.recording = self._record()
            except ConfigError:
                self._gradients = False
                self.recording = self._record()
        self.calls: dict[nn.Module, list[Step]] = {}
        for call in self.recording.calls():
            if call.module is not None:
                self.calls.setdefault(call.module, []).append(call)
        self._training: dict[frozenset[nn.Module | None], Recording | Obstacle] = {}
        self._possible: list[tuple[int, Step]] | None = None

    def _record(self) -> Recording:
        made = record(self.model, self.example, self._options, name=self._name, gradients=self._gradients)
        made.answer = answer_of(made.answer, self.part)
        return made

    def run(self, x: Tensor, shared: Mapping[str, Tensor]) -> Any:
        """The model's answer to other inputs, or the part of it that is wanted."""
        return answer_of(called(self.model, x, {**self._options, **shared}, self._name), self.part)

    def call(self, layer: nn.Module) -> Step:
        """The one call of a layer; an `Obstacle` where it is called never, or more than once."""
        calls = self.calls.get(layer, [])
        if len(calls) != 1:
            times = f"{len(calls)} times" if calls else "never"
            raise Obstacle(f"the forward calls it {times}, and a layer to cut at has to run exactly once")
        return calls[0]

    def at(self, layer: nn.Module) -> tuple[Course, Crossing]:
        """How the forward divides behind a layer; an `Obstacle` where it does not."""
        made = course(self.recording, self.call(layer))
        return made, crossing(made)

    def arguments(self, made: Course, layer: nn.Module) -> Arguments:
        """The arguments of the steps, which may depend on the mode.

        An `Obstacle` where in training the layer's parents do something else, or do not run.
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
                    self._training[opened] = self._record()
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


def answer_of(answer: Any, part: str | int | None = None) -> Any:
    """A part of a record, mapping or tuple; without a name the logits of a record that has them, or all of it.

    Raises:
        ConfigError: it has no such part.
    """
    named: Any = answer.parts if isinstance(answer, Record) else answer
    if part is None:
        record = isinstance(answer, Record) or (isinstance(answer, Mapping) and is_dataclass(answer))
        return named["logits"] if record and "logits" in named else answer
    found = parts(answer)
    keys = list(found.keys) if found is not None else []
    if isinstance(part, int) and part not in keys and part < len(keys):
        part = keys[part]
    if part not in keys:
        raise ConfigError(f"the model's answer has no part {part!r}; choose one of {', '.join(map(repr, keys)) or '-'}")
    return named[part]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what torch.compile and data parallelism put around it."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while (inner := model._modules.get("_orig_mod", model.module if isinstance(model, parallel) else None)) is not None:
        model = inner
    return model


def plain_name(name: str) -> str:
    """A module's name without what torch.compile and parallel wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _arguments(model: nn.Module, inputs: Any, shared: dict[str, Any]) -> tuple[str, Tensor, dict[str, Any], str | None]:
    """Name of what is to be protected, the batch itself, all other inputs, and its name if it has to be given."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if not parameters:
        raise ConfigError("the model's forward takes no input; give a model that takes a batch")
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_place = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    by_name = names[0] if names and not by_place and not any_place else None
    argument = by_name or (by_place[0] if by_place else "x")
    given: dict[str, Any] = {}
    if isinstance(inputs, Mapping | tuple | list) and not inputs:
        raise ConfigError(f"example_input is an empty {type(inputs).__name__}; give a batch of inputs as one tensor")
    if isinstance(inputs, Mapping):
        (argument, example), *others = inputs.items()
        by_name, given = argument, dict(others)
    elif isinstance(inputs, tuple | list):
        example, *others = inputs
        if len(others) > len(by_place[1:]):  # `*args` have no names under which a half could take them
            raise ConfigError(
                f"example_input has {len(inputs)} parts, but the model's forward names {len(by_place)} inputs that can "
                f"be given by their place ({', '.join(by_place) or 'none'}); give it those, or wrap the model in a "
                "module whose forward names every input"
            )
        given = dict(zip(by_place[1:], others, strict=False))
    else:
        example = inputs
    if twice := sorted({argument, *given} & shared.keys()):
        raise ConfigError(f"example_input and example_kwargs both give {', '.join(twice)}; give each input once")
    shared = {**given, **shared}
    if "use_cache" in names:  # what a decoder keeps for the next token belongs to neither half
        shared.setdefault("use_cache", False)
    if not isinstance(example, Tensor):
        raise ConfigError(f"example_input is a {type(example).__name__}; give a batch of inputs as one tensor")
    if example.ndim == 0 or len(example) == 0:
        raise ConfigError(f"example_input has the shape {tuple(example.shape)}; give a batch of at least one input")
    needed = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in shared]
    if missing := [name for name in needed if name != argument]:
        raise ConfigError(
            f"the model's forward takes {len(needed)} inputs ({', '.join(needed)}), of which one is protected; give "
            f"the others ({', '.join(missing)}) with example_kwargs={{...}}, or wrap the model in a module whose "
            "forward takes the image alone"
        )
    for name, part in shared.items():
        if isinstance(part, Tensor) and (part.ndim == 0 or len(part) != len(example)):
            raise ConfigError(
                f"the input {name!r} has the shape {tuple(part.shape)}; give one row for each of the {len(example)} "
                "rows of example_input"
            )
        if not isinstance(part, Tensor | bool | int | float | str | None):
            raise ConfigError(f"the input {name!r} is a {type(part).__name__}; give a tensor or a plain value")
    return argument, example, shared, by_name


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Buffers and random generators afterwards as before."""
    devices = {p.device for p in (*model.parameters(), *model.buffers()) if p.device.type == "cuda"}
    kept = [
        (buffer, buffer._version, buffer.clone())
        for buffer in model.buffers()
        if not (is_lazy(buffer) or buffer.is_inference())
    ]
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, copy in kept:
                    if buffer._version != version:
                        buffer.copy_(copy)
