"""Whether two halves give what the model gives, and if not, why."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.modes import evaluating
from sfumato.split.survey import Survey, name_of, place_of, undisturbed
from sfumato.split.values import Record, Step, walk

__all__ = ["BY_HAND", "logits_of", "verify"]

BY_HAND = "or write the two halves as modules of their own and pass them to SplitModel"


def logits_of(answer: Any) -> Any:
    """The logits of a record that has them, else the answer itself."""
    if isinstance(answer, Record) and "logits" in answer.parts:
        return answer.parts["logits"]
    if isinstance(answer, Mapping) and is_dataclass(answer) and "logits" in answer:
        return answer["logits"]
    return answer


def verify(survey: Survey, edge: nn.Module, cloud: nn.Module, layer: str) -> None:
    """Compare in evaluation mode, on the example, on the mirrored example, and on both in one batch.

    Raises:
        ConfigError: there is a difference.
    """
    model = survey.model
    with undisturbed(model), evaluating(model, edge, cloud):
        for example, what in _examples(survey.example):
            try:
                expected = logits_of(model(example.clone()))
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
    steps = list(survey.recording.steps())
    drawn = next((step for step in steps if step.random), None)
    if drawn is not None:
        return (
            f"{start}its forward is random in evaluation mode ({_what(drawn)}); draw only where self.training is true, "
            f"{BY_HAND}"
        )
    counted = next((step for step in steps if step.kind == "look" and step.target == "__len__"), None)
    if what.startswith("a batch"):
        cause = f"len() in {place_of(counted)} makes it a plain number" if counted else "it ends up as a plain number"
        return f"{start}{cause}; take the batch size from x.size(0), {BY_HAND}"
    return (
        f"{start}the forward keeps tensors in attributes or changes them in a way that a graph does not show; let "
        f"modules return what others need, {BY_HAND}"
    )


def _what(step: Step) -> str:
    return repr(step.target) if step.kind == "module" else f"{name_of(step)} in {place_of(step)}"
