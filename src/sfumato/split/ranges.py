"""Whether the operations that made a feature bound it."""

import math
from typing import Any

from sfumato.split.recorder import Recording
from sfumato.split.values import Step, Value

__all__ = ["BOUNDED", "range_of"]

# Bounded functions by their names in torch and, in lower case, in ONNX.
BOUNDED = {
    "relu6": (0.0, 6.0), **dict.fromkeys(("tanh", "softsign"), (-1.0, 1.0)),
    **dict.fromkeys(("sigmoid", "softmax", "_softmax", "hardsigmoid", "softmin", "gumbel_softmax"), (0.0, 1.0)),
}  # fmt: skip
# Their values are some of those of their input, or averages of them.
_KEEPING = {
    "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "clone", "view_as",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "mean", "movedim", "getitem", "expand", "to", "_to_copy", "float",
    "detach", "alias",
}  # fmt: skip
_PADDED_AVERAGES = {"avg_pool1d", "avg_pool2d", "avg_pool3d"}


def range_of(recording: Recording, value: Value, end: Step | None = None) -> tuple[float, float] | None:
    """The smallest and largest value that a recorded tensor can have, or None if its operations do not say.

    The operations are followed backwards: a sigmoid gives (0, 1), a clamp its limits, a reshape what its input has.
    Which module was registered last does not matter: a squeeze-excite gate ends in a sigmoid, but its product with the
    feature is not bounded.

    `end` is the step behind which the tensor is used; none for the one that gave it.
    """
    end = end or value.step
    while value.inner is not None:
        value = value.inner
    step = value.step
    if step is None or end is None or step.kind == "module" or _changed_later(recording, step, end):
        return None
    name = str(getattr(step.target, "__name__", step.target)).partition(".")[0].rstrip("_")
    if name in BOUNDED:
        return BOUNDED[name]
    if name == "hardtanh":
        return _limits(step, ("min_val", "max_val"), (-1.0, 1.0))
    if name in ("clamp", "clip"):
        return _limits(step, ("min", "max"), (None, None))
    if name in _KEEPING and step.inputs:
        return range_of(recording, step.inputs[0], end)
    if name in _PADDED_AVERAGES and len(step.args) < 7 and step.kwargs.get("divisor_override") is None:
        inner = range_of(recording, step.inputs[0], end)
        return None if inner is None else (min(inner[0], 0.0), max(inner[1], 0.0))  # the padding is averaged, too
    return None


def _changed_later(recording: Recording, step: Step, end: Step) -> bool:
    """Whether anything is changed in place between a step and the end of a layer, perhaps through another view."""
    steps = recording.steps
    between = steps[steps.index(step) + 1 : steps.index(end)]
    return any(later.mutates for later in between if later.kind != "module")


def _limits(step: Step, names: tuple[str, str], default: tuple[Any, Any]) -> tuple[float, float] | None:
    given = [*step.args[1:3], None, None]
    found = [
        step.kwargs.get(name, default[place] if given[place] is None else given[place])
        for place, name in enumerate(names)
    ]
    if not all(isinstance(limit, int | float) and math.isfinite(limit) for limit in found):
        return None
    return float(found[0]), float(found[1])
