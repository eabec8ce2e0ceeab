"""What the cloud computes from a release: every tensor on the way to its answer, which its owner holds as well."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from sfumato.errors import ConfigError
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["Activation", "activations", "cloud_activations"]

_COPIES = {"clone", "_to_copy", "copy_", "detach", "lift_fresh"}


class Activation(NamedTuple):
    """One tensor that the cloud computes.

    Attributes:
        name: `place module operation`, such as `2 block.conv convolution`; the place makes it unique.
        dimension: values for one image.

    >>> Activation("0 0 addmm", 3).dimension
    3
    """

    name: str
    dimension: int


class _Recorder(TorchDispatchMode):
    """Notes the result of every operation under its name, views and copies left out.

    Operations and not modules: a cloud that undoes a scrambling in the middle of a `forward` computes the image there.
    """

    def __init__(self, wanted: Sequence[str] | None) -> None:
        super().__init__()
        self._wanted = wanted
        self._tracker = ModuleTracker()
        self._count = 0
        self.shapes: dict[str, torch.Size] = {}
        self.found: dict[str, Tensor] = {}

    def __enter__(self) -> "_Recorder":
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._tracker.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func._schema.name.removeprefix("aten::")
        if not func.is_view and operation not in _COPIES:
            for one in tree_leaves(result):
                if isinstance(one, Tensor):
                    self._note(operation, one)
        return result

    def _note(self, operation: str, value: Tensor) -> None:
        module = max(self._tracker.parents - {"Global"}, key=len, default="").partition(".")[2]
        name = " ".join(filter(None, (str(self._count), module, operation)))
        self._count += 1
        self.shapes[name] = value.shape
        if self._wanted is not None and name in self._wanted:
            # Later operations may overwrite it in place.
            self.found[name] = value.detach().clone().flatten(1).double().nan_to_num(0.0, 0.0, 0.0)


def _run(cloud: nn.Module, z: Tensor, wanted: Sequence[str] | None) -> _Recorder:
    like = next((value for value in cloud.parameters() if value.is_floating_point()), z)
    with evaluating(cloud), _Recorder(wanted) as recorder:
        cloud(z.to(like.dtype, copy=True, memory_format=torch.contiguous_format))
    return recorder


def activations(cloud: nn.Module, z: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The cloud's activations of these names for releases z (n, ...), each (n, D) float64.

    Raises:
        ConfigError: the cloud computes nothing of that name.
    """
    found = _run(cloud, z, names).found
    for name in names:
        if name not in found:
            raise ConfigError(f"the cloud computes nothing called {name!r}; take a name of attacks.cloud_activations")
    return found


def cloud_activations(model: SplitModel, x: Tensor) -> list[Activation]:
    """Every tensor with one row per image that the cloud computes from what leaves the device, in this order.

    Args:
        model: the victim; it runs in evaluation mode.
        x: (n, C, H, W), at least 2 images.

    >>> from sfumato.split import Channel
    >>> model = SplitModel(nn.Flatten(), Channel(), nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> print(*(f"{one.name}: {one.dimension}" for one in cloud_activations(model, torch.rand(2, 1, 2, 2))), sep=", ")
    0 0 addmm: 3, 1 1 relu: 3, 2 2 addmm: 2
    """
    with evaluating(model):
        z = model.encode(x)
    one, two = (_run(model.cloud, part, None).shapes for part in (z[:1], z[:2]))
    return [
        Activation(name, shape[1:].numel())
        for name, shape in two.items()
        if len(shape) > 1 and shape[0] == 2 and name in one and one[name] == (1, *shape[1:])
    ]
