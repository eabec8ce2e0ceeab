"""Cutting any network in two at a named layer."""

import difflib
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.split.tracing import trace

__all__ = ["split_at"]

_MAX_SUGGESTIONS = 50  # layers tried before giving up on naming a better one


def split_at(model: nn.Module, layer: str, example_input: Tensor) -> tuple[nn.Module, nn.Module]:
    """Cut `model` behind the submodule named `layer`: `cloud(edge(x)) == model(x)`.

    The edge computes everything up to and including the layer's output, the cloud the rest. Both share the model's
    parameters and buffers under their old names and hold only those they use. Operations between modules
    (`torch.flatten`, `F.relu`, residual sums) go to the side on which they happen. An operation that does not depend
    on the input and is needed on both sides is computed on both.

    The result is checked: in evaluation mode the halves have to give what the model gives on `example_input`.

    Args:
        model: any module whose forward takes one tensor (further arguments need defaults, and stay at them).
        layer: dotted name from `model.named_modules()`, such as "layer1" or "features.4".
        example_input: (N, ...) a batch the model accepts, on the model's device.

    Returns:
        `(edge, cloud)`, for `SplitModel(edge, channel, cloud)`. The edge's output is whatever the layer gives: unless
        it is bounded, give the channel a `clip_norm`.

    Raises:
        ConfigError: there is no such layer, it runs not exactly once, its output is not the one and only tensor that
            the rest needs (a skip connection crosses the cut), or the forward cannot be recorded.
    """
    target = _find(model, layer)
    graph = trace(model, target)
    node = _call_of(graph, model, target, layer)
    strays = _strays(graph, node)
    if strays:
        names = ", ".join(_describe(stray) for stray in strays)
        raise ConfigError(
            f"besides the output of {layer!r}, this crosses the cut there: {names}; {_remedy(model, layer)}"
        )
    edge, cloud = _halves(model, graph, node)
    _verify(model, edge, cloud, layer, example_input)
    return edge, cloud


def _find(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if layer and layer in modules:
        return modules[layer]
    names = [name for name in modules if name]
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
    known = near or [name for name, _ in model.named_children()]
    hint = "did you mean" if near else "its layers are"
    raise ConfigError(
        f"{type(model).__name__} has no layer {layer!r}; {hint} {', '.join(map(repr, known)) or 'none'} "
        "(model.named_modules() lists all)"
    )


def _call_of(graph: fx.Graph, model: nn.Module, target: nn.Module, layer: str) -> fx.Node:
    calls = [n for n in graph.nodes if n.op == "call_module" and model.get_submodule(n.target) is target]
    if len(calls) != 1:
        times = f"{len(calls)} times" if calls else "never"
        raise ConfigError(
            f"the forward calls {layer!r} {times}, a cut needs a layer that runs once; "
            "name a layer around or behind it, or give every call a module of its own"
        )
    return calls[0]


def _constant(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on the input: parameters, buffers and what is computed from them alone."""
    known: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op.startswith("call") and all(source in known for source in node.all_input_nodes)
        ):
            known.add(node)
    return known


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Nodes on which the result depends, and those that change a tensor in place (`x.add_(1)`)."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        in_place = node.op == "call_method" and str(node.target).endswith("_")
        if node.op == "output" or in_place or node in live:
            live.update((node, *node.all_input_nodes))
    return live


def _strays(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """What the operations behind the cut need from before it, except the cut's output and constants."""
    nodes, live = list(graph.nodes), _live(graph)
    index = nodes.index(cut) + 1
    allowed = {cut, *nodes[index:], *_constant(graph)}
    needed = dict.fromkeys(source for node in nodes[index:] if node in live for source in node.all_input_nodes)
    return [source for source in needed if source not in allowed]


def _halves(model: nn.Module, graph: fx.Graph, cut: fx.Node) -> tuple[nn.Module, nn.Module]:
    nodes, constant = list(graph.nodes), _constant(graph)
    index = nodes.index(cut) + 1
    image = next(node for node in nodes if node.op == "placeholder")
    front = [node for node in nodes[:index] if node.op != "placeholder"]
    repeated = [node for node in front if node in constant]
    behind = [node for node in nodes[index:-1] if node.op != "placeholder"]
    edge = _module(model, "Edge", (image, str(image.target)), front, cut)
    cloud = _module(model, "Cloud", (cut, "z"), repeated + behind, nodes[-1].args[0])
    return edge, cloud


def _module(model: nn.Module, name: str, start: tuple[fx.Node, str], nodes: list[fx.Node], result: Any) -> nn.Module:
    graph = fx.Graph()
    copies = {start[0]: graph.placeholder(start[1])}
    for node in nodes:
        if all(source in copies for source in node.all_input_nodes):  # else dead: it hangs on a dropped input
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(fx.node.map_arg(result, lambda old: copies[old]))
    live = _live(graph)
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder" and node not in live:
            graph.erase_node(node)
    half = fx.GraphModule(model, graph, class_name=name)
    originals = set(model.modules())
    for part in half.modules():
        if part not in originals:  # the shared ones keep their own mode, frozen layers included
            part.training = model.training
    return half


def _verify(model: nn.Module, edge: nn.Module, cloud: nn.Module, layer: str, example: Tensor) -> None:
    if not isinstance(example, Tensor):
        raise ConfigError(f"example_input is a {type(example).__name__}; give a batch of inputs as one tensor")
    with evaluating(model, edge, cloud):
        try:
            expected = model(example.clone())
        except Exception as error:  # the user's model on the user's example
            raise ConfigError(f"the model does not run on the example input: {error}") from error
        feature = edge(example.clone())
        if not isinstance(feature, Tensor):
            raise ConfigError(
                f"{layer!r} gives a {type(feature).__name__}, and only one tensor can cross the cut; "
                "name a layer that gives a tensor"
            )
        found = cloud(feature)
    pairs = list(zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True))
    if not all(_same(a, b) for a, b in pairs):
        raise ConfigError(
            f"the halves cut at {layer!r} do not give what the model gives: its forward is random in evaluation mode, "
            "or changes tensors or attributes in a way that a graph does not show; write the two halves as modules of "
            "their own"
        )


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
    return type(a) is type(b) and a == b


def _describe(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the model's input {node.target!r}"
    if node.op == "call_module":
        return f"the output of {node.target!r}"
    return f"{node.name!r}, computed in a forward"


def _remedy(model: nn.Module, layer: str) -> str:
    """Name a layer at which a cut works: first those around the layer, then those behind it."""
    names = [name for name, _ in model.named_modules() if name]
    parts = layer.split(".")
    around = [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
    behind = names[names.index(layer) + 1 :] if layer in names else names
    for name in islice([*around, *behind], _MAX_SUGGESTIONS):
        try:
            target = model.get_submodule(name)
            graph = trace(model, target)
            if not _strays(graph, _call_of(graph, model, target, name)):
                return f"cut at {name!r} instead, behind which only its own output is needed"
        except ConfigError:
            continue
    return "cut behind the layer in which the branches come together again"
