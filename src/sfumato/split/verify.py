"""Whether two halves give what the model gives, and if not, why: no cause is named that was not tried."""

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.split.survey import Survey, name_of, place_of, undisturbed
from sfumato.split.values import Step, walk
from sfumato.torch_utils import evaluating

__all__ = ["BY_HAND", "diagnosis", "verify"]

BY_HAND = "or write the two halves as modules of their own and pass them to SplitModel"
_ROUNDING = 1e-3  # of the largest value: larger differences are no rounding, in half precision either

Inputs = tuple[Tensor, dict[str, Tensor]]


def verify(survey: Survey, edge: nn.Module, cloud: nn.Module, layer: str) -> None:
    """Compare in evaluation mode, on the example, on the mirrored example, and on both in one batch.

    Raises:
        ConfigError: there is a difference.
    """

    def halves(inputs: Inputs) -> Any:
        try:
            feature = edge.forward(inputs[0].clone(), **inputs[1])  # a call would print where it fails
            return cloud.forward(feature, **inputs[1])
        except Exception:  # a number in the graph is that of the example
            return None

    def whole(inputs: Inputs) -> Any:
        return survey.run(inputs[0].clone(), inputs[1])

    def mirrored(tensor: Tensor) -> Tensor:
        return tensor.flip(tuple(range(1, tensor.ndim)))

    first = survey.example, survey.shared
    second = mirrored(first[0]), {name: mirrored(part) for name, part in first[1].items()}
    examples = {"the example": first, "another input": second, "a batch of another size": _joined(first, second)}
    with undisturbed(survey.model), evaluating(survey.model, edge, cloud):
        for what, inputs in examples.items():
            try:
                expected = whole(inputs)
            except Exception:  # it takes no batch of this size
                continue
            found = halves(inputs)
            if not _same(expected, found):
                start = f"the halves cut at {layer!r} do not give what the model gives on {what}: "
                drawn = next((step for step in survey.recording.steps if step.random), None)
                place = "" if drawn is None else f" ({_what(drawn)})"
                cause = diagnosis(whole, first, second, place)
                cause = cause or _counted(survey, what) or _gap(expected, found, place)
                raise ConfigError(f"{start}{cause}, {BY_HAND}")


def _joined(first: Inputs, second: Inputs) -> Inputs:
    """Two batches as one."""
    return torch.cat([first[0], second[0]]), {
        name: torch.cat([part, second[1][name]]) for name, part in first[1].items()
    }


def diagnosis(run: Any, first: Inputs, second: Inputs, place: str = "") -> str | None:
    """What is wrong with a module in evaluation mode that can be seen by running it, with the remedy; None: nothing.

    Tried in this order: whether it gives the same for the same input, whether it does so after another input, whether
    the values are finite, and whether a row's result depends on the other rows. `first` and `second` are two batches of
    the same shapes, with the shared inputs by name; `place` says where random numbers are drawn, if that is known.
    """

    def seeded() -> Any:
        with torch.random.fork_rng(devices=[first[0].device] if first[0].device.type == "cuda" else []):
            torch.manual_seed(0)
            return run(first)

    answer = run(first)
    if not _same(answer, run(first)):
        if not _same(seeded(), seeded()):
            return (
                "its answer to one input changes from call to call, with equal random numbers, too (it counts calls or "
                "draws from a generator of its own); let it depend on the input alone in evaluation mode"
            )
        return f"its forward is random in evaluation mode{place}; draw only where self.training is true"
    other = run(second)
    if not _same(answer, run(first)):
        return "its answer depends on earlier inputs (a cache); switch that off"
    if not all(bool(torch.isfinite(leaf).all()) for leaf in _tensors(answer)):
        return "its answer is not finite; give weights and an example with which it is"
    try:
        together = run(_joined(first, second))
    except Exception:  # it takes no batch of this size
        return None
    rows = len(first[0])
    for joint, alone, more in zip(_tensors(together), _tensors(answer), _tensors(other), strict=True):
        if joint.ndim and len(joint) == 2 * rows and len(alone) == len(more) == rows:
            apart = torch.cat([alone, more])
            if float((joint - apart).abs().max()) > _ROUNDING * max(1.0, float(apart.abs().max())):
                return "its forward mixes the rows of a batch; let each row's result depend on that row alone"
    return None


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf.float() for _, leaf in walk(answer) if isinstance(leaf, Tensor)]


def _same(expected: Any, found: Any) -> bool:
    first, second = ([leaf for _, leaf in walk(tree)] for tree in (expected, found))
    return len(first) == len(second) and all(map(_equal, first, second))


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if bool(((a == b) | ((a != a) & (b != b))).all()):
        return True
    return a.device.type != "cpu" and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _counted(survey: Survey, what: str) -> str | None:
    """How the batch size became a number, where only that differs."""
    if not what.startswith("a batch"):
        return None
    looks = (step for step in survey.recording.steps if step.kind == "look")
    counted = next((step for step in looks if step.target == "__len__"), None)
    cause = f"len() in {place_of(counted)} makes it a plain number" if counted else "it ends up as a plain number"
    return f"{cause}; take the batch size from x.size(0)"


def _gap(expected: Any, found: Any, drawn: str) -> str:
    """How the answers differ, where nothing says why."""
    pairs = list(zip(_tensors(expected), _tensors(found), strict=False))
    if found is None or not pairs or any(a.shape != b.shape for a, b in pairs):
        difference = "they have another form or fail"
    else:
        difference = f"they differ by up to {max(float((a - b).abs().max()) for a, b in pairs):.2g}"
    if drawn:
        return f"{difference}, and it draws random numbers{drawn}; draw them once, into a buffer"
    return (
        f"{difference}, although the model is not random; where its forward keeps tensors in attributes or objects (a "
        "cache) or changes them through views, let modules return what others need"
    )


def _what(step: Step) -> str:
    return repr(step.target) if step.kind == "module" else f"{name_of(step)} in {place_of(step)}"
