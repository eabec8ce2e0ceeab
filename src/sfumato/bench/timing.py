"""Timing side by side: variants take turns, so that whatever else the machine does hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

__all__ = ["Ratio", "Timing", "take_turns"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant.

    Attributes:
        median: over the rounds.
        low, high: quartiles.
        rounds: how often it ran.
    """

    median: float
    low: float
    high: float
    rounds: int


def take_turns(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2
) -> tuple[dict[str, Timing], Callable[[str, str], float]]:
    """Run all variants once per round, in alternating order.

    Returns:
        The timings, and `ratio(a, b)`: the median over rounds of seconds of a over seconds of b *in the same round*,
        which a slow phase of the machine cannot move.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warm_up + rounds):
        for name in names if index % 2 else reversed(names):
            began = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - began)

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    timings = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        timings[name] = Timing(middle, low, high, len(values))
    return timings, ratio


@dataclass(frozen=True)
class Ratio:
    """A measured ratio.

    Attributes:
        name: what was measured.
        ratio: measured over baseline.
        baseline: what it is divided by.
        target: the project's own limit, or None where there is none.
        better: whether the ratio should be at most or at least the target.
        detail: the figures behind the ratio, in words.
    """

    name: str
    ratio: float
    baseline: str
    target: float | None = None
    better: Literal["at most", "at least"] = "at most"
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.better == "at most" else self.ratio >= self.target

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"met": self.met}
