"""What the trade-off figure shows: curves of measured settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sfumato.errors import ConfigError

__all__ = ["Curve", "Point", "by_weight", "without_deep"]

_DEPTH = 0.4


@dataclass(frozen=True)
class Point:
    """One setting of a defence.

    Attributes:
        mse: the attacker's error on test images.
        accuracy: of the classifier on test images, in [0, 1].
        mse_error, accuracy_error: half the length of an error bar; None where there is none.
        note: its setting, such as `λ 1`; written beside the point where there is room.
        emphasis: True draws it larger and places its note first.
        converged: False draws it hollow: the attack had not converged, and a longer one may move the point left.
    """

    mse: float
    accuracy: float
    mse_error: float | None = None
    accuracy_error: float | None = None
    note: str = ""
    emphasis: bool = False
    converged: bool = True


@dataclass(frozen=True)
class Curve:
    """Settings of one defence, in the order in which a line joins them.

    Attributes:
        defense: decides the colour.
        points: at least one; a single point gets no line.
        name: what the legend says; the defence's own label where empty.
        variant: tells curves of one defence apart by the kind of line.
    """

    defense: str
    points: tuple[Point, ...]
    name: str = ""
    variant: int = 0


def without_deep(curves: Sequence[Curve]) -> tuple[list[Curve], list[tuple[Curve, Point]]]:
    """The curves without the points more than 40 points of accuracy below the best, and those points.

    Raises:
        ConfigError: there is no point at all.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        raise ConfigError("the trade-off figure has no points; give at least one measured setting")
    floor = max(point.accuracy for point in points) - _DEPTH
    shown = []
    hidden = []
    for curve in curves:
        kept = tuple(point for point in curve.points if point.accuracy >= floor)
        hidden += [(curve, point) for point in curve.points if point.accuracy < floor]
        if kept:
            shown.append(replace(curve, points=kept))
    return shown, hidden


def by_weight(points: Sequence[Point]) -> list[Point]:
    """The ends first, then the middle, then the rest: what a reader needs most gets its note first."""
    order = [0, len(points) - 1, len(points) // 2, *range(len(points))]
    return [points[index] for index in dict.fromkeys(order)]
