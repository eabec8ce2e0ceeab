"""Where the notes of a figure go: beside their points, never over another point, line or note."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Box", "Placed", "place"]


@dataclass(frozen=True)
class Box:
    """A rectangle in points, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "Box") -> bool:
        """True where the two share an area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def holds(self, other: "Box") -> bool:
        """True where `other` lies inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


@dataclass(frozen=True)
class Placed:
    """Which note was placed (its index), and the lower left corner of its text, in points."""

    index: int
    x: float
    y: float


def place(
    notes: Sequence[tuple[float, float, str]], obstacles: Sequence[Box], frame: Box, *, size: float, gap: float
) -> list[Placed]:
    """Find a free place beside each point for its note; a note without one is left out.

    Args:
        notes: (x, y, text) in points, the most important first.
        obstacles: what must stay visible.
        frame: what the notes must not leave.
        size: of the font; a character counts as 0.58 of it, which fits the common sans-serif fonts.
        gap: between a point and its note.
    """
    taken = list(obstacles)
    placed = []
    for index, (x, y, text) in enumerate(notes):
        if not text:
            continue
        width, height = 0.58 * size * len(text), size
        right, left, middle = x + gap, x - gap - width, x - width / 2
        above, below, level = y + gap, y - gap - height, y - height / 2
        corners = (
            (right, above),
            (left, below),
            (right, below),
            (left, above),
            (middle, above + gap),
            (middle, below - gap),
            (right + gap, level),
            (left - gap, level),
        )
        for corner_x, corner_y in corners:
            box = Box(corner_x, corner_y, corner_x + width, corner_y + height)
            if frame.holds(box) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                placed.append(Placed(index, corner_x, corner_y))
                break
    return placed
