"""Sfumato: split inference with features that are harder to reconstruct.

The public names are loaded when first used, so that `import sfumato` costs little, and a device needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato import bounds, metrics
    from sfumato.cem import CEM
    from sfumato.defenses import defense
    from sfumato.integrations import Monitor
    from sfumato.mixture.held_out import HeldOutInformation, held_out_information
    from sfumato.noise import Noise
    from sfumato.split import Channel, SplitModel, cuts, load_split, save_split, split_at
    from sfumato.torch_utils import as_in_training, exact_batch_norm

__version__ = "0.1.0"
__all__ = [
    "CEM",
    "Channel",
    "HeldOutInformation",
    "Monitor",
    "Noise",
    "SplitModel",
    "__version__",
    "as_in_training",
    "bounds",
    "cuts",
    "defense",
    "exact_batch_norm",
    "held_out_information",
    "load_split",
    "metrics",
    "save_split",
    "split_at",
]

_HOME = {
    "CEM": "sfumato.cem",
    "Channel": "sfumato.split",
    "HeldOutInformation": "sfumato.mixture.held_out",
    "Monitor": "sfumato.integrations",
    "Noise": "sfumato.noise",
    "SplitModel": "sfumato.split",
    "as_in_training": "sfumato.torch_utils",
    "cuts": "sfumato.split",
    "defense": "sfumato.defenses",
    "exact_batch_norm": "sfumato.torch_utils",
    "held_out_information": "sfumato.mixture.held_out",
    "load_split": "sfumato.split",
    "save_split": "sfumato.split",
    "split_at": "sfumato.split",
}
_ROOMS = {
    "attacks",
    "bounds",
    "cem",
    "data",
    "defenses",
    "deploy",
    "errors",
    "integrations",
    "metrics",
    "mixture",
    "models",
    "split",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"sfumato.{name}")
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
