"""Running a model once and writing down what it does: which tensor comes from which, in which module's forward."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.split.recorder import OtherSteps, Recorder
from sfumato.split.values import Step, Value

__all__ = ["Recording", "record"]


@dataclass
class Recording:
    """One forward.

    Attributes:
        root: the call of the model; its body holds the steps, those of submodules in their calls' bodies.
        image: the model's input.
        answer: the model's result, with a `Value` in place of every tensor.
    """

    root: Step
    image: Value
    answer: Any

    def everything(self) -> Iterator[Step]:
        """Every call of a module, the model's own last, in the order in which they end."""

        def inside(step: Step) -> Iterator[Step]:
            for one in step.body:
                if one.kind == "module":
                    yield from inside(one)
            yield step

        return inside(self.root)

    def calls(self, opened: Collection[nn.Module | None] = ()) -> Iterator[Step]:
        """Those of submodules, or of all but the opened ones, whose calls consist of others."""
        return (call for call in self.everything() if call is not self.root and call.module not in opened)


def record(
    model: nn.Module,
    example: Tensor,
    *,
    opened: Collection[nn.Module | None] = (),
    replay: Iterator[Step] | None = None,
    gradients: bool = True,
) -> Recording:
    """Run `model(example)` in its present mode and write down what happens.

    Args:
        model: any module.
        example: (N, ...) what it is called with.
        opened: with `replay`: the modules whose forward is run; all others answer what they did in the replay.
        replay: the calls of these others in an earlier recording.
        gradients: run with gradients, to see where the forward switches them off; some forwards run only without.

    Raises:
        ConfigError: the model does not run on the example.
        OtherSteps: the replay does not fit.
    """
    recorder = Recorder(model, opened, replay, gradients)
    image = example.clone()
    with recorder.listening(), torch.set_grad_enabled(gradients):
        source = recorder.enter(image)
        try:
            answer = model(image)
        except OtherSteps:
            raise
        except Exception as error:  # the user's model on the user's example
            raise ConfigError(f"the model does not run on the example input: {_first_line(error)}") from error
    (root,) = recorder.root.body
    return Recording(root, source, recorder.templated(answer))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
