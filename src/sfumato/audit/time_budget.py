"""Where the time of an audit went and how much is left, over all calls that worked on it."""

import time
from collections.abc import Sequence

__all__ = ["TimeBudget"]


class TimeBudget:
    """Keeps a budget.

    Args:
        seconds: for the whole audit.
        spent: in earlier calls.
        reserve: kept for putting the report together.

    >>> TimeBudget(100.0, spent=95.0, reserve=10.0).left
    0.0
    """

    def __init__(self, seconds: float, spent: float, reserve: float) -> None:
        self._end = seconds - reserve
        self._before = spent
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds, over all calls."""
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the pieces have to be done."""
        return max(0.0, self._end - self.spent)

    def allowance(self, share: float, shares: Sequence[float]) -> float:
        """What a piece may take of what is left, `shares` being those of all pieces not done yet, its own included."""
        return self.left * share / sum(shares)
