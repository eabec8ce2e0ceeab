"""One look at a model: where it can be cut, where not, and why."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sfumato.errors import ConfigError
from sfumato.split.recorder import Recording, called, record
from sfumato.split.steps import OTHER_STEPS, Arguments, Course, Obstacle, course, divide, merged
from sfumato.split.values import Record, Step, Value, parts
from sfumato.torch_utils import evaluating

__all__ = ["Survey", "name_of", "place_of", "plain_name", "undisturbed", "unwrapped"]

_WRAPPERS = ("_orig_mod", "module")


class Survey:
    """A model's forward, recorded once in evaluation mode, with every question that a cut asks of it.

    The arguments are those of `split_at`; wrappers of `torch.compile` and of data parallelism are taken off the model.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, shared: Mapping[str, Any] | None = None, part: str | int | None = None
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
        self._training: dict[frozenset[nn.Module | None], Recording | Obstacle] = {}

    def _record(self) -> Recording:
        made = record(self.model, self.example, self._options, name=self._name, gradients=self._gradients)
        made.answer = answer_of(made.answer, self.part)
        return made

    def run(self, x: Tensor, shared: Mapping[str, Tensor]) -> Any:
        """The model's answer to other inputs, or the part of it that is wanted."""
        return answer_of(called(self.model, x, {**self._options, **shared}, self._name), self.part)

    def at(self, layer: nn.Module) -> Course:
        """How the forward divides behind a layer.

        An `Obstacle` where it does not divide, or where in training the layer's parents do something else.
        """
        calls = [call for call in self.recording.calls[:-1] if call.module is layer]
        if len(calls) != 1:
            times = f"{len(calls)} times" if calls else "never"
            raise Obstacle(f"the forward calls it {times}, and a layer to cut at has to run exactly once")
        made = course(self.recording, calls[0])
        divide(made)
        containers = {call.module for call in self.recording.calls if any(step.module for step in call.body)}
        # All containers in training serve every layer at once; where that fails, the layer's parents alone may not.
        try:
            made.arguments = self._arguments(made, layer, frozenset(containers))
        except Obstacle:
            made.arguments = self._arguments(made, layer, frozenset(call.module for call in made.opened))
        return made

    def _arguments(self, made: Course, layer: nn.Module, opened: frozenset[nn.Module | None]) -> Arguments:
        """Those of the same forward with the opened modules in training mode, and their parts in evaluation mode."""
        if opened not in self._training:
            with undisturbed(self.model), evaluating(self.model):
                for part in opened:
                    if part is not None:
                        part.training = True
                try:
                    self._training[opened] = self._record()
                except ConfigError as error:
                    self._training[opened] = Obstacle(f"in training mode {error}")
        twin = self._training[opened]
        if isinstance(twin, Obstacle):
            raise twin
        calls = [call for call in twin.calls if call.module is layer]
        if len(calls) != 1:
            raise Obstacle(OTHER_STEPS)
        return merged(made, course(twin, calls[0]))

    @cached_property
    def possible(self) -> list[tuple[int, Step]]:
        """The calls behind which a cut works, each with its place in the order of all calls."""
        found = []
        for place, call in enumerate(self.recording.calls[:-1]):
            with suppress(Obstacle):
                if call.module is not None:
                    self.at(call.module)
                    found.append((place, call))
        return found

    def nearest(self, layer: nn.Module) -> str:
        """The nearest cuts that work, as the end of a sentence; of several at one place that around the others."""
        places = [place for place, call in enumerate(self.recording.calls[:-1]) if call.module is layer]
        if not places:
            return "sfumato.cuts lists the cuts that work"
        before = [call for place, call in self.possible if place < places[0]][-1:]
        behind = [call for place, call in self.possible if place > places[-1]]
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
    """A part of a record, mapping or tuple; without a name the logits of a record that has them, or all of it."""
    found = parts(answer)
    named: dict[Any, Any] = {} if found is None else dict(zip(found.keys, found.values, strict=True))
    fields: Mapping[str, Any] = answer._asdict() if hasattr(answer, "_fields") else {}  # of a named tuple
    if part is None:
        record = named if isinstance(answer, Record) or is_dataclass(answer) else fields
        return record.get("logits", answer)
    keys = list(named)
    if isinstance(part, int) and part not in keys and part < len(keys):
        part = keys[part]
    if part not in named and part not in fields:
        known = [str(key) if isinstance(key, str) else key for key in (*named, *fields)]
        raise ConfigError(f"the model's answer has no part {part!r}; choose one of {str(known)[1:-1] or '-'}")
    return {**fields, **named}[part]


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
        open_names = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if foreign := [name for name in inputs if name not in names and not open_names]:
            raise ConfigError(
                f"the model's forward has no input {foreign[0]!r}, it takes {', '.join(names) or 'inputs by place'}: a "
                "mapping gives inputs by name; give those, or, if the forward takes a mapping, wrap the model in a "
                "module whose forward takes its entries"
            )
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
