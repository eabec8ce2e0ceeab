"""Timing side by side: variants take turns, so that whatever else the machine does hits all of them."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from sfumato.provenance import evidence

__all__ = ["Ratio", "as_result", "take_turns"]


_WARM_UP = 2  # rounds that do not count


def take_turns(
    variants: Mapping[str, Callable[[], object]], *, rounds: int
) -> tuple[dict[str, float], Callable[[str, str], float]]:
    """Run all variants once per round, in alternating order.

    Returns:
        The median seconds of each, and `ratio(a, b)`: the median over rounds of seconds of a over seconds of b *in the
        same round*, which a slow phase of the machine cannot move.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(_WARM_UP + rounds):
        for name in names if index % 2 else reversed(names):
            began = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= _WARM_UP:
                seconds[name].append(time.perf_counter() - began)

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    return {name: statistics.median(values) for name, values in seconds.items()}, ratio


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


def as_result(rows: Iterable[Ratio], tell: Callable[[Ratio], None] | None, **settings: Any) -> dict[str, Any]:
    """The rows, each told as it comes, with the settings and what was measured with, as plain values for JSON."""
    plain = []
    for row in rows:
        plain.append(row.as_dict())
        if tell is not None:
            tell(row)
    return {"rows": plain, **settings, "evidence": evidence("cpu")}
