"""Below the functions: what the kernels of a forward compute."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.split.values import walk
from sfumato.torch_utils import kernel_flops

if TYPE_CHECKING:
    from sfumato.split.recorder import Recorder

__all__ = ["Kernels"]


class Kernels(TorchDispatchMode):
    """Counts products, and notices random numbers and new tensors, for the step that the recorder is at."""

    def __init__(self, recorder: "Recorder") -> None:
        super().__init__()
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the compiler is not running, and to tell it to keep away would import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        recorder = self._recorder
        step = recorder.scope if recorder.active else recorder.running
        step.flops += kernel_flops(func, args, kwargs, out)
        if torch.Tag.nondeterministic_seeded in func.tags:
            step.random = True
        recorder.born.update(id(leaf) for _, leaf in walk(out) if isinstance(leaf, Tensor))
        return out
