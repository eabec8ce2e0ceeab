"""Running a model once and writing down what it does: every function, method and module call becomes a step."""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.errors import ConfigError, first_line
from sfumato.split.values import Step, Value, rebuilt, template, walk
from sfumato.torch_utils import kernel_flops

__all__ = ["Recorder", "Recording", "called", "record"]

# What takes values out of a tensor, after which the forward may do anything with them.
_LOOKS = {
    "item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__int__", "__float__", "__index__",
    "__complex__", "__contains__", "__array__", "__len__",
}  # fmt: skip
_SIZES = {"size", "numel", "nelement"}
_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


@dataclass
class Recording:
    """One forward."""

    root: Step  # the call of the model; its body holds the steps, those of submodules in their calls' bodies
    image: Value  # the model's input
    answer: Any  # its result, with a `Value` in place of every tensor

    def depends(self, value: Value) -> bool:
        """Whether a value depends on those of the model's input, as far as single operations tell."""
        return _depends(value, self._dependent)

    @cached_property
    def _dependent(self) -> set[Step]:
        found: set[Step] = set()
        for step in self.steps:
            if step.kind != "module" and any(_depends(value, found) for value in step.inputs):
                found.add(step)
        return found

    @cached_property
    def steps(self) -> list[Step]:
        """Everything that happened, in the order in which it ended; the model's own call is the last."""

        def inside(step: Step) -> Iterator[Step]:
            for inner in step.body:
                yield from inside(inner)
            yield step

        return list(inside(self.root))

    @cached_property
    def calls(self) -> list[Step]:
        """Every call of a module, in the order in which they end; the model's own is the last."""
        return [step for step in self.steps if step.kind == "module"]


def _depends(value: Value, dependent: set[Step]) -> bool:
    while value.inner is not None:
        value = value.inner
    step = value.step
    made = step is not None and (step in dependent or step.kind == "module")
    return not value.size and (value.source == "input" or made)


def record(
    model: nn.Module, example: Tensor, shared: Mapping[str, Any] | None = None, *, name: str | None = None,
    gradients: bool = True,
) -> Recording:  # fmt: skip
    """Run `model(example, **shared)` in its present mode and write down what happens.

    `name` is that of the example's argument where it cannot be given by its place. With `gradients` it is seen where
    the forward switches them off; some forwards run only without.
    """
    recorder = Recorder(model, gradients)
    image = example.clone()
    named = {key: part.clone() if isinstance(part, Tensor) else part for key, part in (shared or {}).items()}
    with recorder.listening(), torch.set_grad_enabled(gradients):
        source = recorder.known(image, Value("input", held=image))
        for key, part in named.items():
            if isinstance(part, Tensor):
                recorder.known(part, Value("shared", name=key, held=part))
        try:
            answer = called(model, image, named, name)
        except Exception as error:  # the user's model on the user's example
            raise ConfigError(f"the model does not run on the example input: {first_line(error)}") from error
    (root,) = recorder.root.body
    return Recording(root, source, recorder.templated(answer))


def called(model: nn.Module, x: Tensor, shared: Mapping[str, Any], name: str | None) -> Any:
    """The model's answer."""
    return model(x, **shared) if name is None else model(**{name: x}, **shared)


class Dim(int):
    """A size that is an ordinary number for the forward that reads it, and remembers how it was computed."""

    value: Value
    recorder: "Recorder"

    @classmethod
    def of(cls, number: int, value: Value, recorder: "Recorder") -> "Dim":
        """The number with its origin."""
        made = cls(number)
        made.value, made.recorder = value, recorder
        value.size = True
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    __copy__ = int.__int__


def _remembered(name: str, function: Any, *, swapped: bool = False) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Dim, *other: Any) -> Any:
        result = plain(self, *other)
        if type(result) is not int or not self.recorder.active:
            return result
        operands = (self, *other)
        return self.recorder.computed(function, operands[::-1] if swapped else operands, result)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Dim, f"__{_name}__", _remembered(f"__{_name}__", getattr(operator, _name)))
    setattr(Dim, f"__r{_name}__", _remembered(f"__r{_name}__", getattr(operator, _name), swapped=True))
Dim.__neg__ = _remembered("__neg__", operator.neg)  # type: ignore[method-assign]


def applied(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A `torch.autograd.Function` of the user's own, as a step of a graph."""
    return function.apply(*args, **kwargs)


def _autocast() -> list[Any]:
    """Into which types the present `torch.autocast` turns operations."""
    return [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")]


class Recorder(TorchFunctionMode):
    """Listens to a forward; `scope` is the module call in whose forward it is, `running` the operation."""

    def __init__(self, model: nn.Module, gradients: bool) -> None:
        super().__init__()
        self.active = False
        self._gradients, self._autocast = gradients, _autocast()
        self.root = self.scope = self.running = Step("module", "")
        self.born: set[int] = set()  # tensors that were made while listening
        self._names = {id(part): name for name, part in reversed(list(model.named_modules(remove_duplicate=False)))}
        self._stored = _stored_tensors(model)
        self._values: dict[int, Value] = {}
        self._kept: list[Any] = []  # so that no identity is used twice
        self._call: Callable[..., Any] = nn.Module.__call__

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Intercept functions, modules and kernels."""
        apply = vars(torch.autograd.Function)["apply"]
        called = self._call

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call(module, args, kwargs) if self.active else called(module, *args, **kwargs)

        def function(cls: Any, *args: Any, **kwargs: Any) -> Any:
            bound = apply.__get__(None, cls)
            if not self.active:
                return bound(*args, **kwargs)
            return self.step("function", applied, bound, (cls, *args), kwargs, call=args)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(function)  # type: ignore[assignment]
        try:
            with self, Kernels(self):
                self.active = True
                yield
        finally:
            self.active = False
            nn.Module.__call__ = called  # type: ignore[method-assign]
            torch.autograd.Function.apply = apply  # type: ignore[method-assign]

    @contextmanager
    def _silent(self, running: Step | None = None) -> Iterator[None]:
        before, self.active = (self.active, self.running), False
        self.running = running or self.running
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.active, self.running = before

    def templated(self, tree: Any) -> Any:
        """The tree with values in place of tensors and sizes."""
        return template(tree, self._leaf)

    def _leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Dim):
            return leaf.value
        return self._value(leaf) if isinstance(leaf, Tensor) else leaf

    def _value(self, tensor: Tensor) -> Value:
        found = self._values.get(id(tensor))
        if found is None:
            if id(tensor) in self._stored:
                made = Value("stored", name=self._stored[id(tensor)])
            else:
                made = Value("unknown" if id(tensor) in self.born else "constant", held=tensor)
            found = self.known(tensor, made)
        return found

    def known(self, held: Any, value: Value) -> Value:
        """A tensor is this value from now on."""
        value.serial = len(self._kept)
        self._kept.append(held)
        self._values[id(held)] = value
        return value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self.active or func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        if name in _LOOKS and args:
            self.scope.body.append(self._new("look", name, args))
            with self._silent():
                return func(*args, **kwargs)
        if name in ("__get__", "__set__"):
            attribute = func.__self__.__name__
            if name == "__set__":
                return self.step("function", setattr, func, (args[0], attribute, args[1]), {}, call=args)
            return self.step("attribute", attribute, func, args[:1], {}, call=args, sizes=attribute == "shape")
        if name in ("__getitem__", "__setitem__"):
            return self.step("function", getattr(operator, name.strip("_")), func, args, kwargs)
        sizes = name in _SIZES
        if type(func).__name__ == "method_descriptor" or getattr(func, "__module__", "") == "torch._tensor":
            return self.step("method", name, func, args, kwargs, sizes=sizes)
        return self.step("function", func, func, args, kwargs, sizes=sizes)

    def step(
        self, kind: Any, target: Any, func: Any, args: Any, kwargs: Any, *, call: Any = None, sizes: bool = False
    ) -> Any:
        """Run one operation and write it down, unless all it does is to say something about a tensor's form."""
        step = self._new(kind, target, args, kwargs, sizes=sizes)
        given = _tensors(args, kwargs)
        with self._silent(step):
            versions = {id(tensor): _version(tensor) for tensor in given}
            plain_args, plain_kwargs = rebuilt((args if call is None else call, kwargs), _plain)
            result = func(*plain_args, **plain_kwargs)
            changed = {id(tensor) for tensor in given if _version(tensor) != versions[id(tensor)]}
            step.mutates = bool(changed)
            self._conditions(step, given)
            result = rebuilt(result, lambda path, leaf: self._made(step, path, leaf, changed))
        if step.mutates or sizes or any(isinstance(leaf, Tensor) for _, leaf in walk(result)):
            self.scope.body.append(step)
        return result

    def _new(self, kind: Any, target: Any, args: Any, kwargs: Any = None, **facts: Any) -> Step:
        step = Step(kind, target, parent=self.scope, where=_where(), **facts)
        step.take(self.templated(args), self.templated(kwargs or {}))
        return step

    def _conditions(self, step: Step, given: Iterable[Tensor]) -> None:
        wanted = self._gradients and any(tensor.requires_grad for tensor in given)
        step.cut_gradient = wanted and not torch.is_grad_enabled()
        step.autocast = _autocast() != self._autocast

    def _made(self, step: Step, path: tuple[Any, ...], leaf: Any, changed: set[int]) -> Any:
        if step.sizes and type(leaf) is int:
            return Dim.of(leaf, Value("step", step, path, serial=len(self._kept)), self)
        if not isinstance(leaf, Tensor):
            return leaf
        known = id(leaf) in self._values or id(leaf) in self._stored
        if known and id(leaf) not in changed:
            # An operation that had nothing to do gives back its input, as dropout does in evaluation. Elsewhere it may
            # do something, so its result must not be taken for its input.
            leaf = leaf.view_as(leaf)
        self.known(leaf, Value("step", step, path))
        return leaf

    def computed(self, function: Any, operands: tuple[Any, ...], result: int) -> int:
        """A size computed from sizes."""
        step = self._new("function", function, operands)
        self.scope.body.append(step)
        return Dim.of(result, Value("step", step, serial=len(self._kept)), self)

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one module, with what it does written into the body of its call."""
        name = self._names.get(id(module))
        if name is None:
            return self._call(module, *args, **kwargs)
        step = self._new("module", name, args, kwargs, module=module)
        given = _tensors(args, kwargs)
        before = [self._values.get(id(tensor)) for tensor in given]
        with self._silent():
            versions = [_version(tensor) for tensor in given]
            self._conditions(step, (*given, *module.parameters()))
        self.scope.body.append(step)
        outer, self.scope, start = self.scope, step, len(self._kept)
        try:
            output = self._call(module, *args, **kwargs)
        finally:
            self.scope = outer
        with self._silent():
            step.mutates = any(_version(tensor) != version for tensor, version in zip(given, versions, strict=True))
            output = rebuilt(output, lambda path, leaf: self._returned(step, path, leaf, start))
            returned = {id(leaf) for _, leaf in walk(output)}
            for tensor, value in zip(given, before, strict=True):
                if value is not None and id(tensor) not in returned:
                    self._values[id(tensor)] = value
            step.version = _version(output) if isinstance(output, Tensor) else 0
        step.output, step.result = output, self.templated(output)
        return output

    def _returned(self, step: Step, path: tuple[Any, ...], leaf: Any, start: int) -> Any:
        if isinstance(leaf, Dim):
            return Dim.of(int(leaf), Value("step", step, path, leaf.value, serial=len(self._kept)), self)
        if not isinstance(leaf, Tensor):
            return leaf
        inner = self._value(leaf)
        if inner.serial < start or inner.source in ("stored", "constant"):
            leaf = leaf.view_as(leaf)  # it gives back what it was given; see `_made`
        self.known(leaf, Value("step", step, path, inner))
        return leaf


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for _, leaf in walk(trees) if isinstance(leaf, Tensor)]


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; those made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _plain(_: tuple[Any, ...], leaf: Any) -> Any:
    return int(leaf) if isinstance(leaf, Dim) else leaf


def _stored_tensors(model: nn.Module) -> dict[int, str]:
    """Names of parameters, buffers and other tensors that modules hold as attributes."""
    found: dict[int, str] = {}
    for prefix, part in model.named_modules():
        for holder in (part._parameters, part._buffers, vars(part)):
            for name, tensor in holder.items():
                if isinstance(tensor, Tensor):
                    found.setdefault(id(tensor), f"{prefix}.{name}" if prefix else name)
    return found


def _where() -> str:
    """File and line of the user's code that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _HERE)) and not file.endswith("contextlib.py"):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class Kernels(TorchDispatchMode):
    """Counts products, and notices random numbers and new tensors, for the step that the recorder is at."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the compiler is not running, and to tell it to keep away would import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        recorder = self._recorder
        step = recorder.scope if recorder.active else recorder.running
        step.flops += kernel_flops(func, args, kwargs, out)
        if torch.Tag.nondeterministic_seeded in func.tags:
            step.random = True
        recorder.born.update(id(leaf) for _, leaf in walk(out) if isinstance(leaf, Tensor))
        return out
