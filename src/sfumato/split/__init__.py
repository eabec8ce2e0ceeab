"""A network in two halves with a channel between them, and cutting any network in two."""

from sfumato.split.channel import Channel
from sfumato.split.cut import split_at
from sfumato.split.jacobian import jacobian, projected_jacobian
from sfumato.split.listing import Cut, cuts
from sfumato.split.model import SplitModel, SplitOutput

__all__ = ["Channel", "Cut", "SplitModel", "SplitOutput", "cuts", "jacobian", "projected_jacobian", "split_at"]
