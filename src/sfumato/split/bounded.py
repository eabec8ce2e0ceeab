"""Whether the operation that made a feature bounds it."""

import math
from typing import Any

from sfumato.split.values import Step, Value

__all__ = ["bounds_of"]

_UNIT = {"sigmoid", "softmax", "hardsigmoid", "softmin", "gumbel_softmax"}
# Their values are some of those of their input, or averages of them.
_KEEPING = {
    "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "clone", "view_as",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "mean", "movedim",
    "getitem", "expand",
}  # fmt: skip


def bounds_of(value: Value) -> tuple[float, float] | None:
    """The smallest and largest value that a feature can have, if its last operation says so, else None."""
    while value.inner is not None:
        value = value.inner
    step = value.step
    if step is None or step.kind == "module":
        return None
    name = str(getattr(step.target, "__name__", step.target)).rstrip("_")
    if name in _UNIT:
        return 0.0, 1.0
    if name == "tanh":
        return -1.0, 1.0
    if name == "relu6":
        return 0.0, 6.0
    if name == "hardtanh":
        return _limits(step, ("min_val", "max_val"), (-1.0, 1.0))
    if name in ("clamp", "clip"):
        return _limits(step, ("min", "max"), (None, None))
    if name in _KEEPING and step.inputs:
        return bounds_of(step.inputs[0])
    return None


def _limits(step: Step, names: tuple[str, str], default: tuple[Any, Any]) -> tuple[float, float] | None:
    given = [*step.args[1:3], None, None]
    found = [
        step.kwargs.get(name, default[place] if given[place] is None else given[place])
        for place, name in enumerate(names)
    ]
    if not all(isinstance(limit, int | float) and math.isfinite(limit) for limit in found):
        return None
    return float(found[0]), float(found[1])
