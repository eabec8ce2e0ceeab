"""Where a model can be cut, and what each cut means for device and wire."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from sfumato.split.bounded import bounds_of
from sfumato.split.steps import Course, Obstacle
from sfumato.split.survey import Survey
from sfumato.split.values import Step

__all__ = ["Cut", "cuts"]


@dataclass(frozen=True)
class Cut:
    """One layer as a place to cut.

    Attributes:
        layer: its dotted name, for `split_at`.
        kind: its class.
        obstacle: why there is no cut behind it, and where instead, or None where there is one; what follows is
            about that one.
        shape: of the feature of one input, without the batch dimension.
        edge_flops: floating-point operations of one input on the device, two for each multiply-add of a convolution,
            matrix product or attention; other operations do not count, as in `torch.utils.flop_counter`.
        share: `edge_flops` over those of the whole model, 0 where nothing counts.
        edge_parameters: number of parameters on the device.
        bounds: the feature's smallest and largest possible value where its last operation bounds it (sigmoid, tanh,
            softmax, ReLU6 ...), for `Channel(low=..., high=...)`; None where only a `clip_norm` bounds it.
    """

    layer: str
    kind: str
    obstacle: str | None = None
    shape: tuple[int, ...] = ()
    edge_flops: float = 0.0
    share: float = 0.0
    edge_parameters: int = 0
    bounds: tuple[float, float] | None = None

    @property
    def possible(self) -> bool:
        """Whether `split_at` cuts here."""
        return self.obstacle is None

    @property
    def dimensions(self) -> int:
        """D, the number of values that cross for one input."""
        return math.prod(self.shape) if self.possible else 0

    def bytes_on_wire(self, bits: int = 32) -> int:
        """Bytes that cross for one input: `ceil(D * bits / 8)`; 32 bits are float32 without quantisation."""
        return -(-self.dimensions * bits // 8)


def cuts(model: nn.Module, example_input: Tensor) -> list[Cut]:
    """The layers of a model in the order in which they run, each with what a cut behind it means, or why there is none.

    The model runs once in evaluation mode and once, as far as modes matter, in training mode; it is left as it was.
    What is listed as possible is what `split_at` cuts.

    Args:
        model: any module whose forward takes one tensor (further arguments need defaults).
        example_input: (N, ...) a batch the model accepts; the sizes of the feature follow from it.

    Returns:
        One `Cut` per layer that runs, in the order in which they end, then those that never run.

    Raises:
        ConfigError: the forward needs several inputs, or the model does not run on the example.
    """
    survey = Survey(model, example_input)
    total = _work([survey.recording.root])
    names = [(layer, module) for layer, module in model.named_modules() if layer]
    order = {call.module: place for place, call in enumerate(survey.recording.calls())}
    runs = sorted((one for one in names if one[1] in order), key=lambda one: order[one[1]])
    idle = [one for one in names if one[1] not in order and type(one[1]).forward is not nn.Module.forward]
    return [_cut(survey, layer, module, total) for layer, module in (*runs, *idle)]


def _cut(survey: Survey, layer: str, module: nn.Module, total: int) -> Cut:
    kind = type(module).__name__
    try:
        made, split = survey.at(module)
        survey.arguments(made, module)
    except Obstacle as obstacle:
        return Cut(layer, kind, f"{survey.why(obstacle)}; {survey.nearest(module)}")
    feature = made.cut.step.output if made.cut.step is not None else None
    if not isinstance(feature, Tensor) or not feature.is_floating_point() or feature.ndim < 2:
        form = "a number" if not isinstance(feature, Tensor) else f"{feature.dtype} of shape {tuple(feature.shape)}"
        return Cut(layer, kind, f"its output is {form}, and a feature is a batch of floating-point vectors or maps")
    work, size = _work(split.edge), len(survey.example)
    return Cut(
        layer,
        kind,
        shape=tuple(feature.shape[1:]),
        edge_flops=work / size,
        share=work / total if total else 0.0,
        edge_parameters=_parameters(survey, made, split.edge),
        bounds=bounds_of(made.cut),
    )


def _work(steps: Iterable[Step]) -> int:
    return sum(step.flops + _work(step.body) for step in steps)


def _parameters(survey: Survey, made: Course, steps: Iterable[Step]) -> int:
    """Those of the modules and those that the steps read themselves, each once."""
    found: dict[int, int] = {}
    for step in steps:
        own = [] if step.module is None else list(step.module.parameters())
        read = [survey.stored(value.name) for value in made.inputs(step) if value.source == "stored"]
        for tensor in (*own, *read):
            if isinstance(tensor, nn.Parameter):
                found[id(tensor)] = tensor.numel()
    return sum(found.values())
