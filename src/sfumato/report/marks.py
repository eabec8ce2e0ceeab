"""What figures are made of: points with error bars, legends, and notes beside points."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sfumato.report.averages import error_text, percent_text
from sfumato.report.curves import Curve, Point, by_weight
from sfumato.report.labels import Box, place
from sfumato.report.palette import INK, MUTED, PAPER, Style

__all__ = [
    "NOTE_SIZE",
    "curve_handle",
    "draw_curve",
    "draw_point",
    "legend",
    "legend_columns",
    "line_handle",
    "point_box",
    "write_notes",
    "write_text_at",
]

NOTE_SIZE = 10.5
"""Font size of notes, in points."""

_LINES = ("-", "--", ":", "-.")
_SIZES = {"*": 15.0, "P": 9.0, "X": 9.0, "d": 8.5}  # thin shapes have to be larger to look as large


def draw_curve(axes: Any, curve: Curve, look: Style) -> None:
    """Points with their error bars; hollow ones rest on an attack that had not converged."""
    x = [point.mse for point in curve.points]
    y = [100 * point.accuracy for point in curve.points]
    if len(x) > 1:
        axes.plot(x, y, color=look.colour, linestyle=_line(curve, look), zorder=2)
    for point in curve.points:
        share_error = None if point.accuracy_error is None else 100 * point.accuracy_error
        draw_point(
            axes,
            (point.mse, 100 * point.accuracy),
            (point.mse_error, share_error),
            look,
            emphasis=point.emphasis,
            converged=point.converged,
        )


def draw_point(
    axes: Any,
    at: tuple[float, float],
    errors: tuple[float | None, float | None],
    look: Style,
    *,
    emphasis: bool = False,
    converged: bool = True,
) -> None:
    """One point with its error bars, given as half their lengths; a hollow one where not `converged`."""
    axes.errorbar(
        *at,
        xerr=errors[0],
        yerr=errors[1],
        color=look.colour,
        elinewidth=1.0,
        capsize=2.0,
        marker=look.marker,
        markersize=_marker_size(look) * (1.4 if emphasis else 1.0),
        markerfacecolor=look.colour if converged else PAPER,
        markeredgecolor=PAPER if converged else look.colour,
        markeredgewidth=0.8 if converged else 1.6,
        zorder=4 if emphasis else 3,
    )


def _marker_size(look: Style) -> float:
    return _SIZES.get(look.marker, 6.5)


def write_notes(
    axes: Any,
    shown: Sequence[Curve],
    looks: Mapping[str, Style],
    near: float | None,
    hidden: Sequence[tuple[Curve, Point]],
) -> None:
    """Write beside the points what they are, as far as there is room; the figure's layout has to be final.

    Args:
        axes: of the figure.
        shown: the curves in it.
        looks: style per defence.
        near: where the line of the attacker without a feature is, if it is.
        hidden: points that are named instead of drawn.
    """

    def at(point: Point) -> tuple[float, float]:
        x, y = axes.transData.transform((point.mse, 100 * point.accuracy))
        return float(x), float(y)

    bounds = axes.get_window_extent()
    frame = Box(bounds.x0 + 2, bounds.y0 + 2, bounds.x1, bounds.y1)
    obstacles = []
    if hidden:
        obstacles.append(_name_hidden(axes, frame, hidden, looks))
    if near is not None:
        obstacles.append(_name_reference(axes, frame, near))
    for curve in shown:
        spots = [at(point) for point in curve.points]
        for (x, y), point in zip(spots, curve.points, strict=True):
            obstacles.append(point_box(x, y, 5.0 if point.emphasis else 4.0))
        for (x0, y0), (x1, y1) in pairwise(spots):
            for step in range(1, 24):
                x, y = x0 + (x1 - x0) * step / 24, y0 + (y1 - y0) * step / 24
                obstacles.append(Box(x - 1, y - 1, x + 1, y + 1))
    notes = [(point, curve) for curve in shown for point in by_weight(curve.points)]
    notes.sort(key=lambda pair: not pair[0].emphasis)
    texts = [(*at(point), point.note) for point, _ in notes]
    for spot in place(texts, obstacles, frame, size=NOTE_SIZE, gap=5.0):
        point, curve = notes[spot.index]
        write_text_at(
            axes, spot.x, spot.y, point.note, looks[curve.defense].colour, "bold" if point.emphasis else "normal"
        )


def point_box(x: float, y: float, reach: float = 4.0) -> Box:
    """What a point covers."""
    return Box(x - reach, y - reach, x + reach, y + reach)


def _name_hidden(axes: Any, frame: Box, hidden: Sequence[tuple[Curve, Point]], looks: Mapping[str, Style]) -> Box:
    """Say in the lower left corner which points lie below the figure; gives the place that takes."""
    lines = [
        f"below this figure: {curve.name or looks[curve.defense].label} {point.note}, "
        f"{percent_text(point.accuracy)} %, MSE {error_text(point.mse)}"
        for curve, point in hidden[:3]
    ]
    if len(hidden) > 3:
        lines.append(f"and {len(hidden) - 3} more below it")
    for index, line in enumerate(reversed(lines)):
        write_text_at(axes, frame.left + 4, frame.bottom + 4 + 13 * index, line, MUTED)
    width = 0.58 * NOTE_SIZE * max(len(line) for line in lines)
    return Box(frame.left, frame.bottom, frame.left + 4 + width, frame.bottom + 4 + 13 * len(lines))


def _name_reference(axes: Any, frame: Box, reference: float) -> Box:
    """Write along the line of the attacker who sees no feature."""
    x = float(axes.transData.transform((reference, 0.0))[0])
    label = "answering with the mean image"
    write_text_at(axes, x - 5, frame.bottom + 6, label, MUTED, rotation=90)
    return Box(x - 16, frame.bottom, x + 2, frame.bottom + 6 + 0.58 * NOTE_SIZE * len(label))


def write_text_at(
    axes: Any, x: float, y: float, text: str, colour: str, weight: str = "normal", rotation: float = 0
) -> None:
    """Write at a place given in points from the lower left corner of the figure."""
    axes.text(
        x,
        y,
        text,
        transform=None,
        color=colour,
        fontsize=NOTE_SIZE,
        fontweight=weight,
        rotation=rotation,
        ha="right" if rotation else "left",
        va="bottom",
        parse_math=False,
    )


def curve_handle(curve: Curve, look: Style) -> Any:
    """How a curve looks in a legend."""
    return line_handle(look, _line(curve, look) if len(curve.points) > 1 else "")


def _line(curve: Curve, look: Style) -> str:
    return _LINES[(look.line + curve.variant) % len(_LINES)]


def line_handle(look: Style, kind: Any = "-") -> Any:
    """A line and a marker for a legend."""
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color=look.colour,
        linestyle=kind,
        marker=look.marker,
        markersize=_marker_size(look),
        markeredgecolor=PAPER,
    )


def legend_columns(names: Sequence[str]) -> int:
    """How many names stand in one line of a legend: three if that is all, else two, and one of very long ones."""
    columns = len(names) if len(names) <= 3 else 2
    width = 46 + 6.8 * max(len(name) for name in names)
    return max(1, min(columns, int(432 // width)))


def legend(figure: Any, entries: Sequence[tuple[str, Any]]) -> None:
    """A legend above the figure.

    Names are set afterwards: as labels matplotlib would take some for formulas, and hide those with an underscore.
    """
    drawn = figure.legend(
        [handle for _, handle in entries],
        ["x" * len(name) for name, _ in entries],
        loc="outside upper left",
        ncols=legend_columns([name for name, _ in entries]),
        frameon=False,
        handlelength=2.2,
        columnspacing=1.4,
        labelcolor=INK,
    )
    for text, (name, _) in zip(drawn.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
