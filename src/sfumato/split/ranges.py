"""Which values an encoder can give, read off its last layer or, where it was recorded, its last operation."""

import math

from torch import fx, nn

from sfumato.split.programs import Foreign

__all__ = ["feature_range"]

_RANGES: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0, 1), nn.Hardsigmoid: (0, 1), nn.Softmax: (0, 1), nn.Softmin: (0, 1),
    nn.Tanh: (-1, 1), nn.Softsign: (-1, 1), nn.ReLU6: (0, 6),
}  # fmt: skip
_OPERATIONS = {
    "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "_softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0), "relu6": (0.0, 6.0),
}  # fmt: skip
_MOVES = {"view", "reshape", "flatten", "permute", "transpose", "clone", "contiguous", "_to_copy", "to"}


def feature_range(edge: nn.Module) -> tuple[float, float] | None:
    """The values that an encoder's last layer, or the last operation of a recorded one, can give; None if unbounded."""
    if isinstance(edge, Foreign) and isinstance(edge.inner, fx.GraphModule):
        return _range_of_graph(edge.inner.graph)
    last = list(edge.modules())[-1]
    if isinstance(last, nn.Hardtanh) and not isinstance(last, nn.ReLU6):
        return float(last.min_val), float(last.max_val)
    return next((found for kind, found in _RANGES.items() if isinstance(last, kind)), None)


def _range_of_graph(graph: fx.Graph) -> tuple[float, float] | None:
    (output,) = [node for node in graph.nodes if node.op == "output"]
    results = output.all_input_nodes
    node = results[0] if len(results) == 1 else None
    while node is not None and node.op == "call_function":
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        if name in _MOVES:
            node = node.all_input_nodes[0]
        elif name in ("clamp", "hardtanh"):
            limits = [value for value in (*node.args[1:3], *node.kwargs.values()) if isinstance(value, int | float)]
            return (
                (float(limits[0]), float(limits[1])) if len(limits) == 2 and all(map(math.isfinite, limits)) else None
            )
        else:
            return _OPERATIONS.get(name)
    return None
