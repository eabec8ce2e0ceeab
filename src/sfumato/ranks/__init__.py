"""Several processes that train one model: what they share, how each finds its part, how they start and end together.

`Ranks.current()` is the only thing that the rest of the library asks; in one process everything it does is a no-op.
"""

from sfumato.ranks.gradients import Gradients
from sfumato.ranks.group import Part, Ranks
from sfumato.ranks.launch import TIMEOUT, joined, launched, may_tell
from sfumato.ranks.norm import share_batch_norm
from sfumato.ranks.rows import whole

__all__ = ["TIMEOUT", "Gradients", "Part", "Ranks", "joined", "launched", "may_tell", "share_batch_norm", "whole"]
