"""A network in two halves with a channel between them, and cutting any network in two."""

from sfumato.split.channel import Channel
from sfumato.split.cut import Cut, cuts, split_at
from sfumato.split.jacobian import jacobian, projected_jacobian
from sfumato.split.model import SplitModel, SplitOutput
from sfumato.split.saved import load_split, save_split

__all__ = [
    "Channel",
    "Cut",
    "SplitModel",
    "SplitOutput",
    "cuts",
    "jacobian",
    "load_split",
    "projected_jacobian",
    "save_split",
    "split_at",
]
