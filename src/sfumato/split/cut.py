"""Cutting any network in two at a named layer."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.split.halves import build
from sfumato.split.steps import Course, Crossing, Obstacle, needed
from sfumato.split.survey import Survey, name_of, place_of, undisturbed
from sfumato.split.values import Arguments, Record, Step, Value, walk

__all__ = ["split_at"]

_BY_HAND = "or write the two halves as modules of their own and pass them to SplitModel"


def split_at(model: nn.Module, layer: str, example_input: Tensor) -> tuple[nn.Module, nn.Module]:
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
    the logits alone.

    Args:
        model: any module whose forward takes one tensor (further arguments need defaults, and stay at them).
        layer: dotted name from `model.named_modules()`, such as "layer1" or "features.4"; `sfumato.cuts` lists them.
        example_input: (N, ...) a batch the model accepts, on the model's device; a few inputs are enough.

    Returns:
        `(edge, cloud)`, for `SplitModel(edge, channel, cloud)`. The edge's output is whatever the layer gives: unless
        it is bounded, give the channel a `clip_norm`.

    Raises:
        ConfigError: there is no such layer, it runs not exactly once, its output is not the one and only tensor that
            the rest needs (a skip connection crosses the cut), or the forward cannot be written down as a graph.
    """
    survey = Survey(model, example_input)
    target = _find(model, layer)
    try:
        made, split = survey.at(target)
        arguments = survey.arguments(made, target)
    except Obstacle as obstacle:
        raise ConfigError(_refusal(survey, layer, target, obstacle)) from None
    edge = build(
        model, "Edge", made, (survey.recording.image, survey.argument), split.edge, made.cut, arguments=arguments
    )
    cloud = build(
        model,
        "Cloud",
        made,
        (made.cut, "z"),
        [*split.repeated, *split.cloud],
        _logits(survey.recording.answer),
        arguments=arguments,
        sizes=_sizes(survey, made, split, arguments),
        copied=_changes_its_input(made, split),
    )
    _verify(survey, edge, cloud, layer)
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


def _refusal(survey: Survey, layer: str, target: nn.Module, obstacle: Obstacle) -> str:
    instead = survey.nearest(target)
    if not obstacle.strays:
        instead = f"{instead}, {_BY_HAND}"
    return f"there is no cut at {layer!r}: {survey.why(obstacle)}; {instead}"


def _logits(answer: Any) -> Any:
    """The logits of a record that has them, else the answer itself."""
    if isinstance(answer, Record) and "logits" in answer.parts:
        return answer.parts["logits"]
    if isinstance(answer, Mapping) and is_dataclass(answer) and "logits" in answer:
        return answer["logits"]
    return answer


def _changes_its_input(made: Course, split: Crossing) -> bool:
    """Whether something behind the cut works in place, in either mode; the cloud then works on a copy."""
    call = made.cut.step
    changed = call is not None and isinstance(call.output, Tensor) and call.output._version != call.version
    return changed or any(
        getattr(part, "inplace", False)
        for step in split.cloud
        if step.module is not None
        for part in step.module.modules()
    )


def _sizes(survey: Survey, made: Course, split: Crossing, arguments: Arguments) -> dict[Value, tuple[int, int]]:
    """Sizes that are read before the cut and used behind it: as numbers, or as multiples of the feature's batch size.

    They are found by running the front on one batch and on two.
    """
    if not split.sizes:
        return {}
    steps, _ = needed(made, split.front, [made.cut, *split.sizes])
    start = (survey.recording.image, survey.argument)
    probe = build(survey.model, "Probe", made, start, steps, (made.cut, *split.sizes), arguments=arguments)
    with undisturbed(survey.model), evaluating(survey.model, probe):
        feature, *once = probe.forward(survey.example.clone())
        try:
            longer, *twice = probe.forward(torch.cat([survey.example] * 2))
        except Exception:  # the front takes this batch size only
            longer, twice = feature, once
    found = {}
    for value, first, second in zip(split.sizes, once, twice, strict=True):
        share = Fraction(first, len(feature))
        if first != second and share * len(longer) == second:
            found[value] = share.numerator, share.denominator
        else:
            found[value] = first, 0
    return found


def _verify(survey: Survey, edge: nn.Module, cloud: nn.Module, layer: str) -> None:
    model = survey.model
    with undisturbed(model), evaluating(model, edge, cloud):
        for example, what in _examples(survey.example):
            try:
                expected = _logits(model(example.clone()))
            except Exception:  # it takes no batch of this size
                continue
            try:
                found = cloud.forward(edge.forward(example.clone()))  # a call would print where it fails
                same = _same(expected, found)
            except Exception:  # a number in the graph is that of the example
                same = False
            if not same:
                raise ConfigError(_difference(survey, layer, what))


def _examples(example: Tensor) -> Iterator[tuple[Tensor, str]]:
    mirrored = example.flip(tuple(range(1, example.ndim)))
    yield example, "the example"
    yield mirrored, "another input"
    yield torch.cat([example, mirrored]), "a batch of another size"


def _same(expected: Any, found: Any) -> bool:
    pairs = [[leaf for _, leaf in walk(tree)] for tree in (expected, found)]
    if len(pairs[0]) != len(pairs[1]):
        return False
    return all(_equal(a, b) for a, b in zip(*pairs, strict=True))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()):
            return True
        return a.device.type != "cpu" and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def _difference(survey: Survey, layer: str, what: str) -> str:
    start = f"the halves cut at {layer!r} do not give what the model gives on {what}: "
    steps = list(_all_steps(survey.recording.root))
    drawn = next((step for step in steps if step.random), None)
    if drawn is not None:
        return (
            f"{start}its forward is random in evaluation mode ({_what(drawn)}); draw only where self.training is true, "
            f"{_BY_HAND}"
        )
    counted = next((step for step in steps if step.kind == "look" and step.target == "__len__"), None)
    if what.startswith("a batch"):
        cause = f"len() in {place_of(counted)} makes it a plain number" if counted else "it ends up as a plain number"
        return f"{start}{cause}; take the batch size from x.size(0), {_BY_HAND}"
    return (
        f"{start}the forward keeps tensors in attributes or changes them in a way that a graph does not show; let "
        f"modules return what others need, {_BY_HAND}"
    )


def _all_steps(root: Step) -> Iterator[Step]:
    for step in root.body:
        yield from _all_steps(step)
        yield step


def _what(step: Step) -> str:
    return repr(step.target) if step.kind == "module" else f"{name_of(step)} in {place_of(step)}"
