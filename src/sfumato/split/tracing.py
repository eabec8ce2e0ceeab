"""Recording a model's forward as a graph in which the layer to cut at is one node."""

import inspect
import operator
from typing import Any

from torch import fx, nn

from sfumato.errors import ConfigError
from sfumato.modes import evaluating

__all__ = ["trace"]

_BY_HAND = "write the two halves as modules of their own and pass them to SplitModel"


def trace(model: nn.Module, target: nn.Module) -> fx.Graph:
    """The operations of `model`'s forward, with `target` and everything outside its parents as single nodes.

    Only the forward methods of modules that contain the target are recorded; every other module stays as it is and
    may hold any Python code. Optional arguments of the model's forward are fixed at their defaults. Where a recorded
    forward reads `self.training`, the graph reads it too, so that `train()` and `eval()` keep working on the halves.

    Raises:
        ConfigError: the forward takes more than one required argument, cannot be recorded, or runs through other
            operations in training than in evaluation.
    """
    defaults = _defaults(model)
    with evaluating(model):
        evaluation = _record(model, target, defaults)
        for part in model.modules():
            part.training = True
        training = _record(model, target, defaults)
    return _merge(training, evaluation)


class _Tracer(fx.Tracer):
    def __init__(self, parents: set[int]) -> None:
        super().__init__()
        self._parents = parents

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._parents


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1:
        raise ConfigError(
            f"the model's forward takes {len(required)} inputs ({', '.join(required)}), a split model one; "
            "wrap it in a module whose forward takes the image alone"
        )
    rest = parameters if required else parameters[1:]
    return {p.name: p.default for p in rest if p.default is not p.empty}


def _record(model: nn.Module, target: nn.Module, defaults: dict[str, Any]) -> fx.Graph:
    parents = {id(m) for m in model.modules() if m is not target and any(part is target for part in m.modules())}
    try:
        return _Tracer(parents).trace(model, concrete_args=defaults or None)
    except Exception as error:  # whatever the user's forward raises when its inputs are symbols
        raise ConfigError(
            f"the forward of {type(model).__name__} cannot be recorded as a graph ({error}); Python control flow that "
            f"depends on the data has to sit inside a submodule that does not contain the layer, or {_BY_HAND}"
        ) from error


def _merge(training: fx.Graph, evaluation: fx.Graph) -> fx.Graph:
    """The training graph with every constant that is `True` in one mode and `False` in the other as a read."""
    nodes, others = list(training.nodes), list(evaluation.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
        raise _mode_error()
    twin = dict(zip(nodes, others, strict=True))
    first = next(node for node in nodes if node.op != "placeholder")
    reads: dict[bool, fx.Node] = {}

    def read(in_training: bool) -> fx.Node:
        if True not in reads:
            with training.inserting_before(first):
                reads[True] = training.create_node("get_attr", "training")
        if in_training not in reads:
            with training.inserting_after(reads[True]):
                reads[False] = training.call_function(operator.not_, (reads[True],))
        return reads[in_training]

    def merged(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if twin[a] is not b:
                raise _mode_error()
            return a
        if isinstance(a, bool) and isinstance(b, bool) and a is not b:
            return read(a)
        if type(a) is not type(b):
            raise _mode_error()
        if isinstance(a, tuple | list):
            if len(a) != len(b):
                raise _mode_error()
            return type(a)(merged(i, j) for i, j in zip(a, b, strict=True))
        if isinstance(a, dict):
            if list(a) != list(b):
                raise _mode_error()
            return {key: merged(a[key], b[key]) for key in a}
        if isinstance(a, slice):
            return slice(merged(a.start, b.start), merged(a.stop, b.stop), merged(a.step, b.step))
        if a is not b and a != b:
            raise _mode_error()
        return a

    for node in nodes:
        node.args = merged(tuple(node.args), tuple(twin[node].args))
        node.kwargs = merged(dict(node.kwargs), dict(twin[node].kwargs))
    return training


def _mode_error() -> ConfigError:
    return ConfigError(
        "the model's forward runs through other operations in training than in evaluation; move that choice into a "
        f"submodule that does not contain the layer, or {_BY_HAND}"
    )
