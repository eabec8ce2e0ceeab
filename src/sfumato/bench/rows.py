"""One line of a benchmark: a ratio, what it is a ratio of, and the target it is held against."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
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
