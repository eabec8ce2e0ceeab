"""Cutting any network in two at a named layer, and listing where that is possible and what it means."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.split.halves import build
from sfumato.split.ranges import range_of
from sfumato.split.steps import Course, Obstacle, needed
from sfumato.split.survey import Survey, plain_name, undisturbed
from sfumato.split.values import Attribute, Step, Value
from sfumato.split.verify import BY_HAND, verify
from sfumato.torch_utils import evaluating

__all__ = ["Cut", "cuts", "split_at"]

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


def split_at(
    model: nn.Module,
    layer: str,
    example_input: Inputs,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    answer: str | int | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Cut `model` behind the submodule named `layer`: `cloud(edge(x)) == model(x)`.

    The edge computes everything up to and including the layer's output, the cloud the rest. Both call the model's own
    submodules and share its parameters and buffers, under their old names, and hold only those they use. Operations
    between modules (`torch.flatten`, `F.relu`, residual sums) go to the side on which they happen. What does not depend
    on the input's values and is needed on both sides (positions, masks, the batch size) is computed on both.

    The model runs on the example, and what it does is written down; so its forward may hold any Python code, as long as
    the forwards of the modules around the layer do not decide by the data's values. The halves take any batch size, and
    inputs of the example's size. `train()`, `eval()`, `to()`, hooks on submodules and `copy.deepcopy` work on them as
    on the model.

    The result is checked: in evaluation mode the halves have to give bit for bit what the model gives on the example,
    on the mirrored example, and on both in one batch (on a GPU, whose kernels may round differently from call to call,
    up to 1e-4 relative and 1e-5 absolute).

    A model that answers with a record that has `logits`, as those of Hugging Face do, gets a cloud that answers with
    the logits alone; `answer` names another part.

    One input is protected. Further tensors, such as an attention mask, are given by name to both halves,
    `cloud(edge(ids, attention_mask=mask), attention_mask=mask)`: they cross the cut as they are, beside the feature and
    without noise.

    Args:
        model: any module, also one that `torch.compile` or data parallelism wraps.
        layer: dotted name from `model.named_modules()`, such as "layer1" or "features.4"; `sfumato.cuts` lists them.
        example_input: (N, ...) a batch the model accepts, on the model's device; a few inputs are enough. Or what the
            forward takes as a tuple, or as a mapping by name, such as a tokenizer gives it; the first is protected.
        example_kwargs: further inputs by name. Tensors have N rows and are given to both halves; other values stay as
            they are, and so do the defaults of what is left out.
        answer: which part of a record, mapping or tuple the cloud gives, by name or place.

    Returns:
        `(edge, cloud)`, for `SplitModel(edge, channel, cloud)`. The edge's output is whatever the layer gives: unless
        it is bounded, give the channel a `clip_norm`.

    Raises:
        ConfigError: there is no such layer, it runs not exactly once, its output is not the one and only tensor that
            the rest needs (a skip connection crosses the cut), the forward cannot be written down as a graph, or the
            halves do not give the same, with the cause as far as a test finds one.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
    >>> x = torch.rand(5, 4)
    >>> edge, cloud = split_at(model, "1", x)
    >>> edge(x).shape, torch.equal(cloud(edge(x)), model(x))
    (torch.Size([5, 3]), True)
    """
    survey = Survey(model, example_input, example_kwargs, answer)
    target = _find(survey.model, layer)
    try:
        made = survey.at(target)
    except Obstacle as obstacle:
        instead = survey.nearest(target) if obstacle.strays else f"{survey.nearest(target)}, {BY_HAND}"
        raise ConfigError(f"there is no cut at {layer!r}: {survey.why(obstacle)}; {instead}") from None
    edge = build(survey, made, "Edge", made.edge, made.cut)
    answer, sizes, copied = survey.recording.answer, _sizes(survey, made), _changes_its_input(made)
    behind = [*made.repeated, *made.cloud]
    cloud = build(survey, made, "Cloud", behind, answer, start=made.cut, sizes=sizes, copied=copied)
    verify(survey, edge, cloud, layer)
    return edge, cloud


def _find(model: nn.Module, layer: str) -> nn.Module:
    if not isinstance(layer, str):
        raise ConfigError(f"layer is a {type(layer).__name__}; give the dotted name of a layer, such as 'layer1'")
    modules = {plain_name(name): part for name, part in model.named_modules(remove_duplicate=False)}
    layer = plain_name(layer)
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


def _changes_its_input(made: Course) -> bool:
    """Whether something behind the cut works in place, in either mode; the cloud then works on a copy."""
    call = made.cut.step
    changed = call is not None and (not isinstance(call.output, Tensor) or call.output._version != call.version)
    return changed or any(
        getattr(part, "inplace", False)
        for step in made.cloud
        if step.module is not None
        for part in step.module.modules()
    )


def _sizes(survey: Survey, made: Course) -> dict[Value, tuple[int, int]]:
    """Sizes that are read before the cut and used behind it: as numbers, or as multiples of the feature's batch size.

    They are found by running the front on one batch and on two.
    """
    if not made.sizes:
        return {}
    steps, _ = needed(made, made.front, [made.cut, *made.sizes])
    probe = build(survey, made, "Probe", steps, (made.cut, *made.sizes))
    with undisturbed(survey.model), evaluating(survey.model, probe):
        feature, *once = probe.forward(survey.example.clone(), **survey.shared)
        try:
            doubled = {name: torch.cat([part] * 2) for name, part in survey.shared.items()}
            longer, *twice = probe.forward(torch.cat([survey.example] * 2), **doubled)
        except Exception:  # the front takes this batch size only
            longer, twice = feature, once
    found = {}
    for value, first, second in zip(made.sizes, once, twice, strict=True):
        share = Fraction(first, len(feature))
        follows = first != second and share * len(longer) == second
        found[value] = share.as_integer_ratio() if follows else (first, 0)
    return found


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


def cuts(model: nn.Module, example_input: Inputs, example_kwargs: Mapping[str, Any] | None = None) -> list[Cut]:
    """The layers of a model in the order in which they run, each with what a cut behind it means, or why there is none.

    The model runs once in evaluation mode and once, as far as modes matter, in training mode; it is left as it was.
    What is listed as possible is what `split_at` cuts.

    Args:
        model: any module.
        example_input: (N, ...) a batch the model accepts, see `split_at`; the sizes of the feature follow from it.
        example_kwargs: further inputs by name, see `split_at`.

    Returns:
        One `Cut` per layer that runs, in the order in which they end, then those that never run.

    Raises:
        ConfigError: the forward needs other inputs, or the model does not run on the example.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
    >>> second = list(cuts(model, torch.rand(1, 4)))[1]
    >>> print(second.layer, second.edge_flops, round(second.share, 2), second.bounds)
    1 24.0 0.67 (0.0, 1.0)
    """
    survey = Survey(model, example_input, example_kwargs)
    model = survey.model
    total = _work([survey.recording.root])
    names = [(layer, module) for layer, module in model.named_modules() if layer]
    order = {call.module: place for place, call in enumerate(survey.recording.calls)}
    runs = sorted((one for one in names if one[1] in order), key=lambda one: order[one[1]])
    idle = [one for one in names if one[1] not in order and type(one[1]).forward is not nn.Module.forward]
    return [_cut(survey, layer, module, total) for layer, module in (*runs, *idle)]


def _cut(survey: Survey, layer: str, module: nn.Module, total: int) -> Cut:
    kind = type(module).__name__
    try:
        made = survey.at(module)
    except Obstacle as obstacle:
        return Cut(layer, kind, f"{survey.why(obstacle)}; {survey.nearest(module)}")
    feature: Any = made.cut.step.output if made.cut.step is not None else None
    for key in made.cut.path:
        feature = getattr(feature, key) if isinstance(key, Attribute) else feature[key]
    if not isinstance(feature, Tensor) or not feature.is_floating_point() or feature.ndim < 2:
        form = "a number" if not isinstance(feature, Tensor) else f"{feature.dtype} of shape {tuple(feature.shape)}"
        return Cut(layer, kind, f"its output is {form}, and a feature is a batch of floating-point vectors or maps")
    work, size = _work(made.edge), len(survey.example)
    return Cut(
        layer,
        kind,
        shape=tuple(feature.shape[1:]),
        edge_flops=work / size,
        share=work / total if total else 0.0,
        edge_parameters=_parameters(survey, made),
        bounds=range_of(survey.recording, made.cut),
    )


def _work(steps: Iterable[Step]) -> int:
    return sum(step.flops + _work(step.body) for step in steps)


def _parameters(survey: Survey, made: Course) -> int:
    """Those of the encoder's modules and those that its steps read themselves, each once."""
    stored = dict(survey.model.named_parameters(remove_duplicate=False))
    found: set[nn.Parameter] = set()
    for step in made.edge:
        found.update([] if step.module is None else step.module.parameters())
        read = [value.name for value in made.inputs(step) if value.source == "stored"]
        found.update(stored[name] for name in read if name in stored)
    return sum(tensor.numel() for tensor in found)
